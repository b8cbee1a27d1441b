"""Products moved to our kernels: the same numbers but for half precision, and only what fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
from openvino import opset13 as ops

from compllm.embedded import matmul_offload
from compllm.embedded.ops import library_path, load_library

F32 = {"INFERENCE_PRECISION_HINT": "f32"}


@pytest.fixture(autouse=True)
def _any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    library = library_path()
    assert library is not None
    monkeypatch.setattr(
        matmul_offload, "FASTER_ON", (load_library(library).compllm_isa().decode(),)
    )


def _model(
    *, rows: int = 40, inputs: int = 24, bias: Any = None, is_turned: bool = True, top: float = 1.0
) -> Any:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((rows, inputs)).astype(np.float32)
    weight *= top / np.abs(weight).max()
    x = ops.parameter([-1, -1, inputs], np.float32)
    constant = ops.constant(weight if is_turned else np.ascontiguousarray(weight.T))
    product = ops.matmul(x, constant, transpose_a=False, transpose_b=is_turned)
    whole = product if bias is None else ops.add(product, ops.constant(bias))
    return openvino.Model([whole], [x])


def _run(model: Any, core: Any, tokens: int = 7) -> Any:
    inputs = model.inputs[0].partial_shape[-1].get_length()
    x = np.random.default_rng(1).standard_normal((2, tokens, inputs)).astype(np.float32)
    return core.compile_model(model, "CPU", F32)(x)[0]


@pytest.mark.parametrize("rows", [16, 40, 33])  # whole panels, and what fills none
@pytest.mark.parametrize("bias_shape", [None, (1, 1, -1), (-1,)])
def test_a_moved_product_is_the_product(rows: int, bias_shape: tuple[int, ...] | None) -> None:
    core = openvino.Core()
    bias = None if bias_shape is None else np.arange(rows, dtype=np.float32).reshape(bias_shape)
    wanted = _run(_model(rows=rows, bias=bias), core)
    model = _model(rows=rows, bias=bias)
    moved = matmul_offload.offload_matmuls(model, core)
    assert moved is not None
    assert moved.num_matmuls == 1
    assert not [node for node in model.get_ops() if node.get_type_name() in ("MatMul", "Add")]
    np.testing.assert_allclose(_run(model, core), wanted, atol=5e-3, rtol=1e-3)


def test_a_fixed_shape_still_fits() -> None:
    core = openvino.Core()
    wanted = _run(_model(), core, tokens=3)
    model = _model()
    moved = matmul_offload.offload_matmuls(model, core)
    assert moved is not None
    model.reshape([2, 3, 24])
    assert list(model.outputs[0].shape) == [2, 3, 40]
    np.testing.assert_allclose(_run(model, core, tokens=3), wanted, atol=5e-3)


def test_an_addition_that_is_no_bias_stays() -> None:
    core = openvino.Core()
    table = np.arange(7 * 40, dtype=np.float32).reshape(1, 7, 40)  # one for each token
    wanted = _run(_model(bias=table), core)
    model = _model(bias=table)
    moved = matmul_offload.offload_matmuls(model, core)
    assert moved is not None
    assert [node for node in model.get_ops() if node.get_type_name() == "Add"]
    np.testing.assert_allclose(_run(model, core), wanted, atol=5e-3, rtol=1e-3)


def test_a_product_read_twice_keeps_its_addition() -> None:
    core = openvino.Core()
    x = ops.parameter([-1, 16], np.float32)
    weight = ops.constant(np.eye(16, dtype=np.float32))
    product = ops.matmul(x, weight, transpose_a=False, transpose_b=True)
    biased = ops.add(product, ops.constant(np.ones(16, np.float32)))
    model = openvino.Model([product, biased], [x])
    moved = matmul_offload.offload_matmuls(model, core)
    assert moved is not None
    plain, added = core.compile_model(model, "CPU", F32)(np.ones((2, 16), np.float32)).values()
    assert (plain == 1).all()
    assert (added == 2).all()


@pytest.mark.parametrize("odd", [{"is_turned": False}, {"top": 1e5}], ids=["other way", "too big"])
def test_what_does_not_fit_is_left(odd: dict[str, Any]) -> None:
    model = _model(**odd)
    assert matmul_offload.offload_matmuls(model, openvino.Core()) is None
    assert [node for node in model.get_ops() if node.get_type_name() == "MatMul"]


def test_without_the_library_the_model_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_offload, "library_path", lambda: None)
    assert matmul_offload.offload_matmuls(_model(), openvino.Core()) is None


def test_where_nothing_is_gained_the_model_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul_offload, "FASTER_ON", ("another",))
    assert matmul_offload.offload_matmuls(_model(), openvino.Core()) is None


def test_every_product_of_the_encoder_is_moved(encoder_dir: Path) -> None:
    from compllm.build_scripts.convert_encoder import ensure_ir
    from compllm.routing.embed import IR_MODEL

    ir = ensure_ir(encoder_dir)
    assert ir is not None
    core = openvino.Core()
    model = core.read_model(ir / IR_MODEL)
    moved = matmul_offload.offload_matmuls(model, core)
    assert moved is not None
    assert moved.num_matmuls == 36
