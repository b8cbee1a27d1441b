"""A checkpoint of transformers 5 means the same to the transformers of the image."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers import rewrite_json

from compllm.build_scripts.trtllm.legacy_form import (
    Rope,
    legacy_config,
    legacy_tokenizer,
    write_legacy,
)
from compllm.errors import ArtefactError
from compllm.formats.json_files import read_json

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("config", "theta", "scaling"),
    [
        # As transformers 5 writes our base: read without this, it had a rotary base of 10,000.
        (
            {"rope_parameters": {"rope_theta": 100000.0, "rope_type": "default"}},
            100000.0,
            None,
        ),
        ({"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}}, 500000.0, LLAMA3),
        ({"rope_theta": 500000.0, "rope_scaling": LLAMA3}, 500000.0, LLAMA3),
        (
            {"rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}},
            1e6,
            {"rope_type": "linear", "factor": 2.0},
        ),
        ({"rope_theta": 1000000, "rope_scaling": None}, 1e6, None),
        ({}, 10000.0, None),  # written out: upstream's default for Qwen is 100,000
    ],
)
def test_rotary_positions_are_written_in_the_older_form(
    config: dict[str, Any], theta: float, scaling: dict[str, Any] | None
) -> None:
    made = legacy_config(config)
    assert (made["rope_theta"], made["rope_scaling"]) == (theta, scaling)
    assert "rope_parameters" not in made


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
            "rope type 'yarn': TensorRT-LLM engines are built with default, linear and llama3",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type 'dynamic'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "lacks low_freq_factor"),
        ({"rope_parameters": {"full_attention": {}}}, "differ by layer"),
        ({"rope_theta": "1e6"}, "rope_theta is '1e6', expected a positive number"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ],
)
def test_rotary_positions_that_the_engine_cannot_compute_are_refused(
    config: dict[str, Any], said: str
) -> None:
    with pytest.raises(ArtefactError, match=r"^config\.json: ") as caught:
        legacy_config(config)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("built", "said"),
    [
        ({"rotary_base": 500000.0, "rotary_scaling": LLAMA3}, None),
        (
            {"rotary_base": 500000, "rotary_scaling": {**LLAMA3, "type": "llama3", "factor": 8}},
            None,
        ),
        ({"rotary_base": 10000.0, "rotary_scaling": LLAMA3}, "rotary_base is 10000.0"),
        ({"rotary_scaling": LLAMA3}, "rotary_base is None"),
        ({"rotary_base": 500000.0}, "rotary_scaling is of type 'default'"),
        (
            {"rotary_base": 500000.0, "rotary_scaling": {**LLAMA3, "factor": 32.0}},
            "rotary_scaling.factor is 32.0, the checkpoint has 8.0",
        ),
    ],
)
def test_a_built_engine_has_the_rotary_positions_of_its_checkpoint(
    built: dict[str, Any], said: str | None
) -> None:
    found = Rope(500000.0, LLAMA3).difference_from(built)
    assert found is None if said is None else str(found).startswith(said)


def test_the_image_gets_links_to_the_weights_and_rewritten_files(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    source, made = tmp_path / "source", tmp_path / "made"
    shutil.copytree(tiny_checkpoint, source)
    rope = {"rope_theta": 100000.0, "rope_type": "default"}
    rewrite_json(source / "config.json", {"rope_parameters": rope, "dtype": "float16"})
    before = (source / "config.json").read_text()
    made.mkdir()
    write_legacy(source, made)
    config = json.loads((made / "config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"]) == (100000.0, "float16")
    assert (made / "model.safetensors").resolve() == (source / "model.safetensors").resolve()
    assert {each.name for each in made.iterdir()} == {each.name for each in source.iterdir()}
    assert (source / "config.json").read_text() == before


def test_the_shipped_base_keeps_its_rotary_base(base_dir: Path) -> None:
    config = read_json(base_dir / "config.json")
    assert Rope.from_config(config) == Rope(100000.0)


def test_a_newer_tokenizer_has_a_class_and_tokens_that_the_image_knows() -> None:
    made = legacy_tokenizer(
        {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"], "eos_token": "e"}
    )
    assert made == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": ["<a>"],
        "eos_token": "e",
    }
