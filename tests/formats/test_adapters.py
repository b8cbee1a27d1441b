"""Adapters read as PEFT computes with them, and their converted form on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import MakeAdapter, rewrite_json
from hypothesis import given
from hypothesis import strategies as st
from peft_parts import ALL

from compllm.errors import ArtefactError
from compllm.formats.adapters import (
    Adapter,
    LoraWeights,
    check_adapter_name,
    load_adapter_npz,
    make_adapter,
    read_peft,
    save_adapter_npz,
)
from compllm.formats.shape import BaseShape


def peft_delta(checkpoint: Path, directory: Path, layer: int, module: str) -> Any:
    """What PEFT itself adds to a weight: scale * B A, [outputs, inputs]."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32), directory
    )
    block = model.base_model.model.model.layers[layer]
    owner = block.self_attn if hasattr(block.self_attn, module) else block.mlp
    return getattr(owner, module).get_delta_weight("default").detach().numpy()


def assert_same_delta(adapter: Adapter, layer: int, module: str, expected: Any) -> None:
    weights = adapter.modules[layer, module]
    np.testing.assert_allclose(weights.folded_b @ weights.a, expected, rtol=1e-5, atol=1e-7)


def test_reads_every_module_in_a_fixed_order(plain: Path, base: BaseShape) -> None:
    adapter = read_peft(plain, base)
    assert adapter.name == "plain"
    assert adapter.rank == 4
    assert list(adapter.modules) == sorted((layer, m) for layer in range(2) for m in ALL)
    assert adapter.modules[0, "down_proj"].a.shape == (4, base.intermediate)
    assert adapter.modules[1, "k_proj"].b.dtype == np.float32


def test_alpha_over_rank_scales_as_in_peft(
    plain: Path, tiny_checkpoint: Path, base: BaseShape
) -> None:
    expected = peft_delta(tiny_checkpoint, plain, 1, "up_proj")
    assert_same_delta(read_peft(plain, base), 1, "up_proj", expected)


def test_scale_stays_apart_and_the_id_is_the_folded_one(
    plain: Path, base: BaseShape, tmp_path: Path
) -> None:
    adapter = read_peft(plain, base)
    assert {weights.scale for weights in adapter.modules.values()} == {3.0}  # 12 / 4
    save_adapter_npz(tmp_path / "plain.npz", adapter)
    loaded = load_adapter_npz(tmp_path / "plain.npz", base)
    assert {weights.scale for weights in loaded.modules.values()} == {3.0}
    folded = {
        key: LoraWeights(weights.a, weights.folded_b) for key, weights in adapter.modules.items()
    }
    assert make_adapter("plain", folded).task_id == adapter.task_id


def test_rank_and_alpha_patterns_scale_as_in_peft(
    tiny_checkpoint: Path, make_adapter: MakeAdapter, base: BaseShape
) -> None:
    directory = make_adapter(
        tiny_checkpoint,
        "patterns",
        rank=4,
        modules=("q_proj", "v_proj"),
        rank_pattern={"q_proj": 2, r"layers\.1\.self_attn\.v_proj": 6},
        alpha_pattern={"layers.0.self_attn.q_proj": 3},
    )
    adapter = read_peft(directory, base)
    assert adapter.rank == 6
    ranks = {key: weights.rank for key, weights in adapter.modules.items()}
    assert ranks == {(0, "q_proj"): 2, (1, "q_proj"): 2, (0, "v_proj"): 4, (1, "v_proj"): 6}
    for layer, module in ranks:
        expected = peft_delta(tiny_checkpoint, directory, layer, module)
        assert_same_delta(adapter, layer, module, expected)


def test_rslora_divides_by_the_root_of_the_rank(
    tiny_checkpoint: Path, make_adapter: MakeAdapter, base: BaseShape
) -> None:
    directory = make_adapter(
        tiny_checkpoint, "rs", rank=9, alpha=6, modules=["o_proj"], use_rslora=True
    )
    expected = peft_delta(tiny_checkpoint, directory, 0, "o_proj")
    assert_same_delta(read_peft(directory, base), 0, "o_proj", expected)


def test_reads_bfloat16_files(copy: Path, plain: Path, base: BaseShape) -> None:
    import torch
    from safetensors.torch import load_file as load_torch
    from safetensors.torch import save_file as save_torch

    path = copy / "adapter_model.safetensors"
    save_torch({k: v.to(torch.bfloat16) for k, v in load_torch(path).items()}, path)
    exact, rounded = read_peft(plain, base), read_peft(copy, base)
    for key, weights in exact.modules.items():
        np.testing.assert_allclose(rounded.modules[key].a, weights.a, rtol=2**-8)


def test_task_id_follows_name_and_content(copy: Path, base: BaseShape) -> None:
    before = read_peft(copy, base)
    assert read_peft(copy, base).task_id == before.task_id
    assert read_peft(copy, base, name="other").task_id != before.task_id
    rewrite_json(copy / "adapter_config.json", {"lora_alpha": 13})
    after = read_peft(copy, base)
    assert after.task_id != before.task_id
    assert 0 < after.task_id < 2**53


@pytest.mark.parametrize("name", ["", "base", "../x", "a/b", "a b", ".hidden", "x" * 65, "ä"])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(ArtefactError, match="adapter name"):
        check_adapter_name(name)


def test_converted_form_survives_the_disk(plain: Path, base: BaseShape, tmp_path: Path) -> None:
    adapter = read_peft(plain, base)
    save_adapter_npz(tmp_path / "plain.npz", adapter)
    loaded = load_adapter_npz(tmp_path / "plain.npz", base)
    assert (loaded.name, loaded.rank, loaded.sha256) == ("plain", 4, adapter.sha256)
    for key, weights in adapter.modules.items():
        np.testing.assert_array_equal(loaded.modules[key].a, weights.a)
        np.testing.assert_array_equal(loaded.modules[key].b, weights.b)
    assert [path.name for path in tmp_path.iterdir()] == ["plain.npz"]


def test_saving_without_space_leaves_the_old_file(
    plain: Path, base: BaseShape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = read_peft(plain, base)
    path = tmp_path / "plain.npz"
    save_adapter_npz(path, adapter)
    before = path.read_bytes()

    def full(handle: Any, **arrays: Any) -> None:
        handle.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        save_adapter_npz(path, adapter)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["plain.npz"]


@given(position=st.integers(0, 10**6), bits=st.integers(1, 255))
def test_a_damaged_converted_file_never_loads_as_something_else(
    converted: tuple[Path, Adapter, BaseShape], position: int, bits: int
) -> None:
    path, adapter, base = converted
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= bits
    damaged = path.with_name("damaged.npz")
    damaged.write_bytes(content)
    try:
        loaded = load_adapter_npz(damaged, base)
    except ArtefactError:
        return
    assert loaded.sha256 == adapter.sha256  # the flipped bits were in padding or a date


@pytest.fixture(scope="module")
def converted(
    plain: Path, base: BaseShape, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Adapter, BaseShape]:
    full = read_peft(plain, base)
    small = make_adapter("small", {(0, "k_proj"): full.modules[0, "k_proj"]})
    path = tmp_path_factory.mktemp("converted") / "small.npz"
    save_adapter_npz(path, small)
    return path, small, base


def test_converted_file_of_another_base_is_refused(
    converted: tuple[Path, Adapter, BaseShape], base_dir: Path
) -> None:
    other = BaseShape.from_config(json.loads((base_dir / "config.json").read_text()))
    with pytest.raises(ArtefactError, match="adapter small: layer 0 k_proj"):
        load_adapter_npz(converted[0], other)


def test_hash_covers_shapes_and_places() -> None:
    factor = LoraWeights(a=np.ones((1, 4), np.float32), b=np.ones((4, 1), np.float32))
    one = make_adapter("x", {(0, "q_proj"): factor})
    two = make_adapter("x", {(1, "q_proj"): factor})
    assert one.sha256 != two.sha256


def test_first_form_of_converted_files_is_still_read(
    plain: Path, base: BaseShape, tmp_path: Path
) -> None:
    adapter = read_peft(plain, base)
    about = {"format": "compllm-adapter/1", "name": "plain", "sha256": adapter.sha256}
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about))}
    for (layer, module), weights in adapter.modules.items():
        arrays[f"{layer}.{module}.a"] = weights.a
        arrays[f"{layer}.{module}.b"] = weights.folded_b
    np.savez(tmp_path / "old.npz", **arrays)
    assert load_adapter_npz(tmp_path / "old.npz", base).task_id == adapter.task_id
