"""PEFT directories: read as PEFT computes with them; what cannot be served is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import MakeAdapter, rewrite_json
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

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
from compllm.formats.checkpoint import validate_checkpoint
from compllm.formats.shape import BaseShape, model_name

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture(scope="module")
def base(tiny_checkpoint: Path) -> BaseShape:
    return validate_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def plain(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(tiny_checkpoint, "plain", rank=4, alpha=12, modules=ALL)


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    """A copy of `plain` that a test may damage."""
    return Path(shutil.copytree(plain, tmp_path / "plain"))


def change_tensors(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "changed the base's own weights"),
        ({"r": 0}, "rank .r. is 0"),
        ({"r": "eight"}, "rank .r. is 'eight'"),
        ({"r": 8}, "its rank is 4, the config says 8"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"target_modules": "("}, "no regular expression"),
        ({"target_modules": 3}, "target_modules is 3"),
        ({"target_modules": ["q_proj"]}, "does not name it in target_modules"),
        ({"layers_to_transform": [1]}, "does not name it in target_modules and layers_to"),
        ({"layers_to_transform": ["one"]}, "layers_to_transform is"),
        ({"monteclora_config": {"samples": 4}}, "MonteCLoRA is not served"),
        ({"use_newest_lora": True}, "field use_newest_lora .True. .* is not known"),
        ({"base_model_name_or_path": "Qwen/Qwen2-0.5B"}, "made for base Qwen2-0.5B.*--same-base"),
    ],
)
def test_config_that_cannot_be_served_is_refused(
    copy: Path, base: BaseShape, changes: dict[str, Any], said: str
) -> None:
    rewrite_json(copy / "adapter_config.json", changes)
    with pytest.raises(ArtefactError, match=f"^adapter plain: .*{said}"):
        read_peft(copy, base)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("changed", "value", "said"),
    [
        (Q.format("A"), np.zeros((4, 63), np.float32), r"layer 0 q_proj: A \[4, 63\]"),
        (Q.format("B"), np.zeros((64, 5), np.float32), r"layer 0 q_proj: .* B \[64, 5\]"),
        (Q.format("A"), np.zeros((0, 64), np.float32), "layer 0 q_proj: rank 0"),
        (Q.format("A"), np.full((4, 64), np.nan, np.float32), "layer 0 q_proj: holds NaN"),
        (Q.format("B"), np.full((64, 4), np.inf, np.float16), "layer 0 q_proj: holds NaN"),
        (Q.format("B"), np.full((64, 4), 3e38, np.float32), "layer 0 q_proj: .* half precision"),
        (Q.format("A"), np.full((4, 64), 7e4, np.float32), r"reaches 7e\+04: beyond half"),
        (Q.format("B"), np.full((64, 4), 3e4, np.float32), r"reaches 9e\+04: beyond half"),
        (Q.format("B"), np.zeros((64, 4), np.int8), "type that is not served"),
        (Q.format("B"), None, "layer 0 q_proj: lora_B is missing"),
        ("base_model.model.lm_head.lora_A.weight", np.zeros((4, 64)), "lm_head"),
        ("base_model.model.model.embed_tokens.weight", np.zeros((4, 4)), "embed_tokens"),
        (Q.format("magnitude_vector"), np.zeros(64), "lora_magnitude_vector"),
        (Q.format("A").replace("q_proj", "w_proj"), np.zeros((4, 64)), "w_proj"),
        (Q.format("A").replace("self_attn", "mlp"), np.zeros((4, 64)), "wrong block"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(
    copy: Path, base: BaseShape, changed: str, value: Any, said: str
) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors[changed] = value
        if value is None:
            del tensors[changed]

    change_tensors(copy, change)
    with pytest.raises(ArtefactError, match=f"^adapter plain: .*{said}"):
        read_peft(copy, base)


def test_layers_beyond_the_base_are_refused(copy: Path, base: BaseShape) -> None:
    def move(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".layers.1." in name]:
            tensors[name.replace(".layers.1.", ".layers.7.")] = tensors.pop(name)

    change_tensors(copy, move)
    with pytest.raises(ArtefactError, match=r"layer 7 .*: the base has layers 0 to 1"):
        read_peft(copy, base)


def test_adapter_of_another_shape_is_refused(plain: Path, base_dir: Path) -> None:
    other = BaseShape.from_config(json.loads((base_dir / "config.json").read_text()))
    with pytest.raises(ArtefactError, match="do not fit the base"):
        read_peft(plain, other)


def test_manifest_beside_the_adapter_decides_about_the_base(copy: Path, base: BaseShape) -> None:
    from dataclasses import replace

    rewrite_json(copy / "adapter_config.json", {"base_model_name_or_path": "renamed"})
    (copy / "manifest.json").write_text(json.dumps({"base_sha256": "a" * 64}))
    assert read_peft(copy, replace(base, sha256="a" * 64)).rank == 4
    with pytest.raises(ArtefactError, match=r"made for base renamed with weights a{12}, this"):
        read_peft(copy, replace(base, sha256="b" * 64))


def test_a_trained_adapter_is_for_the_base_that_its_training_recorded(
    copy: Path, base: BaseShape
) -> None:
    """Training wrote the hash under another key than was read: the check never applied."""
    from dataclasses import replace

    record = {"base": {"name": "tiny-llama", "sha256": "a" * 64}}
    (copy / "manifest.json").write_text(json.dumps(record))
    assert read_peft(copy, replace(base, sha256="a" * 64)).rank == 4
    said = r"made for base tiny-llama with weights a{12}, this one is tiny-llama and has b{12}\. If"
    with pytest.raises(ArtefactError, match=said):
        read_peft(copy, replace(base, sha256="b" * 64))
    assert read_peft(copy, replace(base, sha256="b" * 64), is_same_base=True).rank == 4


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_missing_files_are_named(copy: Path, base: BaseShape, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ArtefactError, match=f"{name} is missing"):
        read_peft(copy, base)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_broken_files_are_named(copy: Path, base: BaseShape, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:100])
    with pytest.raises(ArtefactError, match=name):
        read_peft(copy, base)


def test_pickled_weights_are_never_opened(copy: Path, base: BaseShape) -> None:
    (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    with pytest.raises(ArtefactError, match="pickle"):
        read_peft(copy, base)


def test_missing_directory_is_named(tmp_path: Path, base: BaseShape) -> None:
    with pytest.raises(ArtefactError, match=r"adapter nowhere: .* is not a directory"):
        read_peft(tmp_path / "nowhere", base)


@pytest.mark.parametrize("name", ["", "base", "../x", "a/b", "a b", ".hidden", "x" * 65, "ä"])
def test_names_that_are_no_file_names_are_refused(name: str) -> None:
    with pytest.raises(ArtefactError, match="adapter name"):
        check_adapter_name(name)


def test_model_name_is_found_in_hub_names_and_paths() -> None:
    assert model_name("HuggingFaceTB/SmolLM2-135M-Instruct") == "SmolLM2-135M-Instruct"
    assert model_name("/home/me/models/tiny/") == "tiny"
    assert model_name("/c/hub/models--Qwen--Qwen2-0.5B/snapshots/1f2e") == "Qwen2-0.5B"
    assert model_name("") == ""


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


@pytest.mark.parametrize(
    "wrapped",
    [
        "_orig_mod.{}",
        "module._orig_mod.{}",
        "base_model.model._orig_mod.{rest}",
        "base_model.model.module.{rest}",
        "base_model.model.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight",
    ],
)
def test_wrappers_of_trainers_in_names_are_taken_off(
    copy: Path, plain: Path, base: BaseShape, wrapped: str
) -> None:
    name = Q.format("A")

    def wrap(tensors: dict[str, Any]) -> None:
        rest = name.removeprefix("base_model.model.")
        tensors[wrapped.format(name, rest=rest)] = tensors.pop(name)

    change_tensors(copy, wrap)
    assert read_peft(copy, base).sha256 == read_peft(plain, base).sha256


def test_names_with_the_adapters_own_name_in_them_are_read(
    copy: Path, plain: Path, base: BaseShape
) -> None:
    def name_all(tensors: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace(".weight", ".default.weight")] = tensors.pop(name)

    change_tensors(copy, name_all)
    assert read_peft(copy, base).sha256 == read_peft(plain, base).sha256


def test_a_caller_may_vouch_for_the_base(copy: Path, base: BaseShape) -> None:
    repack = {"base_model_name_or_path": "unsloth/tiny-llama-bnb-4bit"}
    rewrite_json(copy / "adapter_config.json", repack)
    assert read_peft(copy, base, is_same_base=True).rank == 4


@pytest.mark.parametrize("targets", [r".*\.(self_attn|mlp)\.\w+", "all-linear", None])
def test_other_ways_to_name_targets_are_read(copy: Path, base: BaseShape, targets: object) -> None:
    rewrite_json(copy / "adapter_config.json", {"target_modules": targets})
    assert len(read_peft(copy, base).modules) == 14


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
