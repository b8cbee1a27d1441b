"""Checkpoints: the two families pass, everything that would fail later is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import rewrite_json
from safetensors.numpy import load_file, save_file

from compllm.errors import ArtefactError
from compllm.formats.checkpoint import validate_checkpoint, weight_files
from compllm.formats.shape import BaseShape


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def test_shape_and_name_are_read(tiny_checkpoint: Path) -> None:
    shape = validate_checkpoint(tiny_checkpoint)
    assert shape == BaseShape(2, 64, 96, 4, 2, 16, 49152, name="tiny-llama")
    assert shape.module_shapes()["down_proj"] == (64, 96)
    assert shape.module_shapes()["k_proj"] == (32, 64)


def test_qwen2_with_sharded_weights_passes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": 49152,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
    }
    model = Qwen2ForCausalLM(Qwen2Config(**sizes))  # type: ignore[no-untyped-call]
    model.save_pretrained(tmp_path, max_shard_size="7MB")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_checkpoint / name, tmp_path / name)
    assert len(weight_files(tmp_path)) > 1
    assert validate_checkpoint(tmp_path).head_dim == 8


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "is a MixtralForCausalLM; supported are"),
        ({"architectures": None}, "unknown architecture"),
        ({"quantization_config": {"bits": 4}}, "quantised already"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers is 'two'"),
        ({"num_key_value_heads": 3}, "4 heads cannot share 3"),
        ({"hidden_size": 66, "head_dim": None}, "no multiple of 4 heads"),
        ({"intermediate_size": 97}, r"gate_proj.weight is \[96, 64\], config.json says \[97, 64\]"),
        ({"num_hidden_layers": 3}, r"no tensor model\.layers\.2"),
        ({"tie_word_embeddings": False}, r"no tensor lm_head\.weight"),
        ({"attention_bias": True}, r"no tensor model\.layers\.0\.self_attn\.q_proj\.bias"),
    ],
)
def test_config_that_cannot_be_built_is_refused(
    copy: Path, changes: dict[str, Any], said: str
) -> None:
    rewrite_json(copy / "config.json", changes)
    with pytest.raises(ArtefactError, match=said):
        validate_checkpoint(copy)


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize(
    "damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:50])]
)
def test_missing_and_damaged_files_are_named(
    copy: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    damage(copy / name)
    with pytest.raises(ArtefactError, match=name):
        validate_checkpoint(copy)


def test_missing_shard_is_named(copy: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtefactError, match=r"model-00001-of-00002\.safetensors is missing"):
        validate_checkpoint(copy)


def test_index_that_leaves_the_folder_is_refused(copy: Path) -> None:
    index = {"weight_map": {"model.norm.weight": "../../etc/passwd"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtefactError, match="outside its folder"):
        validate_checkpoint(copy)


def test_missing_norm_is_named(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"] = np.zeros(3, np.float32)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ArtefactError, match=r"model\.norm\.weight is \[3\]"):
        validate_checkpoint(copy)


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="nowhere is not a directory"):
        validate_checkpoint(tmp_path / "nowhere")


def change(directory: Path, **tensors: Any) -> None:
    """Set tensors, whose names have _ for their dots, or remove those that are None."""
    found = load_file(directory / "model.safetensors")
    for name, value in tensors.items():
        found.pop(name, None)
        if value is not None:
            found[name] = value
    save_file(found, directory / "model.safetensors")


EMBEDDING = "model.embed_tokens.weight"
NORM = "model.layers.1.post_attention_layernorm.weight"
BIAS = "model.layers.0.self_attn.q_proj.bias"


def test_another_output_matrix_beside_a_tied_one_is_refused(copy: Path) -> None:
    embedding = load_file(copy / "model.safetensors")[EMBEDDING]
    change(copy, **{"lm_head.weight": embedding})
    validate_checkpoint(copy)
    change(copy, **{"lm_head.weight": embedding + 1})
    with pytest.raises(ArtefactError, match=r"differs from .*set that to false"):
        validate_checkpoint(copy)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (NORM, np.ones(32, np.float32), r"post_attention_layernorm.weight is \[32\], .* \[64\]"),
        (NORM, None, "no tensor .*post_attention_layernorm"),
        (BIAS, np.ones(64, np.float32), "no such biases .attention_bias"),
        ("model.layers.0.self_attn.q_norm.weight", np.ones(16, np.float32), "no part of the model"),
        ("model.layers.2.mlp.up_proj.weight", np.ones((96, 64), np.float32), "no part of the"),
        ("model.norm.weight", np.ones(64, np.int8), "model.norm.weight is of type I8"),
    ],
)
def test_tensors_that_are_wrong_missing_or_too_many_are_named(
    copy: Path, name: str, value: Any, said: str
) -> None:
    change(copy, **{name: value})
    with pytest.raises(ArtefactError, match=said):
        validate_checkpoint(copy)


def test_bias_of_a_wrong_size_is_named(copy: Path) -> None:
    rewrite_json(copy / "config.json", {"attention_bias": True})
    sizes = {"q_proj": 64, "k_proj": 32, "v_proj": 32, "o_proj": 63}
    for layer in range(2):
        for module, size in sizes.items():
            bias = np.ones(size, np.float32)
            change(copy, **{f"model.layers.{layer}.self_attn.{module}.bias": bias})
    with pytest.raises(ArtefactError, match=r"layers.0.self_attn.o_proj.bias is \[63\]"):
        validate_checkpoint(copy)


def test_buffers_of_old_checkpoints_are_left_out(copy: Path) -> None:
    change(copy, **{"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(8, np.float32)})
    validate_checkpoint(copy)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
def test_wrappers_in_the_names_of_a_checkpoint_are_named(copy: Path, prefix: str) -> None:
    tensors = load_file(copy / "model.safetensors")
    save_file({prefix + k: v for k, v in tensors.items()}, copy / "model.safetensors")
    with pytest.raises(ArtefactError, match=f"save the model that was wrapped .*'{prefix}'"):
        validate_checkpoint(copy)


def test_a_file_that_is_no_tokenizer_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ArtefactError, match=r"tokenizer\.json is no tokenizer"):
        validate_checkpoint(copy)
