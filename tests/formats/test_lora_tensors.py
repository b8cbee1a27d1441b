"""Adapters as TensorRT-LLM's weight tensors, there and back."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from compllm.errors import ArtefactError
from compllm.formats.adapters import Adapter, LoraWeights, make_adapter
from compllm.formats.lora_tensors import MODULE_IDS, from_tensors, to_tensors
from compllm.formats.shape import MODULES, BaseShape

BASE = BaseShape(
    num_layers=2, hidden=8, intermediate=12, num_heads=2, num_kv_heads=1, head_dim=4, vocab=16
)


def _adapter(ranks: dict[tuple[int, str], int]) -> Adapter:
    rng = np.random.default_rng(0)

    def factor(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float16).astype(np.float32)

    shapes = BASE.module_shapes()
    return make_adapter(
        "one",
        {
            key: LoraWeights(factor(rank, shapes[key[1]][1]), factor(shapes[key[1]][0], rank))
            for key, rank in ranks.items()
        },
    )


def test_adapter_of_mixed_ranks_comes_back_the_same() -> None:
    adapter = _adapter({(0, "q_proj"): 2, (1, "down_proj"): 3, (1, "gate_proj"): 1})
    weights, config = to_tensors(adapter)
    assert weights.dtype == np.float16
    assert weights.shape == (3, 3 * (8 + 12))
    assert from_tensors("one", weights, config, BASE).sha256 == adapter.sha256


def test_module_ids_are_those_of_tensorrt_llm() -> None:
    assert set(MODULE_IDS) == set(MODULES)
    assert MODULE_IDS["gate_proj"] == 5  # mlp_h_to_4h
    assert MODULE_IDS["up_proj"] == 7  # mlp_gate


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((0, 0, 2, 0), "lora module 0 not enabled"),
        ((1, 0, 0, 0), r"Invalid low_rank \(0\)"),
        ((1, 0, 99, 0), r"Invalid low_rank \(99\)"),
        ((1, 0, 2, 1), "DoRA"),
        ((1, 7, 2, 0), "layer 7"),
    ],
)
def test_config_that_does_not_fit_is_refused(row: tuple[int, ...], message: str) -> None:
    weights, _ = to_tensors(_adapter({(0, "q_proj"): 2}))
    with pytest.raises(ArtefactError, match=message):
        from_tensors("one", weights, np.array([row], np.int32), BASE)


def test_config_of_another_number_of_rows_is_refused() -> None:
    weights, config = to_tensors(_adapter({(0, "q_proj"): 2}))
    with pytest.raises(ArtefactError, match="1 rows of lora_weights"):
        from_tensors("one", weights, np.repeat(config, 2, axis=0), BASE)


def test_weights_that_are_no_numbers_are_refused() -> None:
    weights, config = to_tensors(_adapter({(0, "q_proj"): 2}))
    weights[0, 0] = np.nan
    with pytest.raises(ArtefactError, match="NaN"):
        from_tensors("one", weights, config, BASE)
