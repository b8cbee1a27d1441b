"""What a PEFT directory may say and hold: each thing that cannot be served is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import rewrite_json
from safetensors.numpy import load_file, save_file

from compllm.errors import ArtefactError
from compllm.formats.adapters import read_peft
from compllm.formats.shape import BaseShape, model_name


def change_tensors(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = directory / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


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
    with pytest.raises(
        ArtefactError, match="made for base renamed with weights aaaaaaaaaaaa, this"
    ):
        read_peft(copy, replace(base, sha256="b" * 64))


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


def test_model_name_is_found_in_hub_names_and_paths() -> None:
    assert model_name("HuggingFaceTB/SmolLM2-135M-Instruct") == "SmolLM2-135M-Instruct"
    assert model_name("/home/me/models/tiny/") == "tiny"
    assert model_name("/c/hub/models--Qwen--Qwen2-0.5B/snapshots/1f2e") == "Qwen2-0.5B"
    assert model_name("") == ""


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
