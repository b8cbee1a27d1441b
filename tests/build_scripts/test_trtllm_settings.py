"""gpu.toml: what is wrong in it is named with file, key and value."""

from __future__ import annotations

from pathlib import Path

import pytest

from compllm.build_scripts.trtllm.settings import default_settings_path, load_settings
from compllm.errors import ConfigError


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = default_settings_path().read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "gpu.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("gpu", "capability", "batch", "quantisation"),
    [("h100", "9.0", 128, "none"), ("a100", "8.0", 128, "none"), ("l4", "8.9", 64, "int8")],
)
def test_each_gpu_has_its_defaults(
    gpu: str, capability: str, batch: int, quantisation: str
) -> None:
    settings = load_settings(gpu=gpu)
    assert settings.gpu.compute_capability == capability
    assert (settings.engine.max_batch_size, settings.engine.quantisation) == (batch, quantisation)
    assert (settings.topology, settings.num_gpus) == ("shared", 1)


def test_engine_overrides_the_gpu_and_arguments_the_file(tmp_path: Path) -> None:
    path = changed(tmp_path, "[engine]\n", "[engine]\nquantisation = 'none'\nmax_seq_len = 2048\n")
    settings = load_settings(path, gpu="l4", topology="per-expert", num_gpus=4)
    assert (settings.engine.quantisation, settings.engine.max_batch_size) == ("none", 64)
    assert settings.explicit == {"quantisation", "max_seq_len"}
    assert (settings.topology, settings.num_gpus) == ("per-expert", 4)


def test_paths_stand_relative_to_the_file(tmp_path: Path) -> None:
    path = changed(tmp_path, "[gpus.h100]", "[experts.bio]\ncheckpoint = 'bio'\n[gpus.h100]")
    assert load_settings(path).checkpoints == {"bio": tmp_path / "bio"}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[engine]\n", "[engine]\nquantization = 'fp8'\n", "did you mean 'quantisation'"),
        ("[engine]\n", "[engine]\ntp = 0\n", "engine.tp = 0: expected an integer from 1 to 64"),
        ("[engine]\n", "[engine]\ntp = true\n", "engine.tp = True: expected an integer"),
        ("[engine]\n", "[engine]\ndtype = 'fp4'\n", "expected one of float16, bfloat16"),
        ("[engine]\n", "[engine]\npaged_context_fmha = 1\n", "expected true or false"),
        ('gpu = "h100"', 'gpu = "b300"', "gpu = 'b300': expected one of h100, a100, a100-40, l4"),
        ('gpu = "h100"', "gpu = []", r"gpu = []: expected one of"),
        ("num_gpus = 1", "num_gpus = 0", "num_gpus = 0: expected an integer from 1"),
        ('"26.07-trtllm-python-py3"', '"25.12-trtllm-python-py3"', "expected one of 26.07-trtllm"),
        ('topology = "shared"', 'topology = "both"', "expected one of shared, per-expert"),
        ('topology = "shared"', "speed = 1", "unknown key speed"),
        ("max_rank = 0", "max_rank = -1", "lora.max_rank = -1: expected an integer from 0"),
        ("max_rank = 0", "rank = 8", "unknown key lora.rank; did you mean 'max_rank'"),
        ('compute_capability = "8.9"', "compute_capability = 8.9", "l4.compute_capability = 8.9"),
        ('compute_capability = "8.9"', 'compute_capability = "Ada"', "expected like '9.0'"),
        ('compute_capability = "8.9"', "", "gpus.l4.compute_capability is missing"),
        ("memory_gib = 22.5", "memory_gib = 0.5", "gpus.l4.memory_gib = 0.5"),
        ("[lora]", "[experts.bio]\npath = 'x'\n[lora]", "unknown key experts.bio.path"),
        ("[lora]", "[experts.bio]\n[lora]", "experts.bio.checkpoint = None: expected a directory"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = changed(tmp_path, old, new)
    with pytest.raises(ConfigError) as caught:
        load_settings(path)
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
