"""What a machine must have to serve TensorRT-LLM engines. nvidia-smi and python3 are stand-ins that
print what the real ones would; no machine here has a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from repositories import engine_entry, write_engines

from compllm.build_scripts.trtllm.record import AdapterEntry
from compllm.cli.app import run
from compllm.cli.doctor import Check, is_healthy
from compllm.cli.doctor_gpu import examine_gpu
from compllm.formats.checkpoint import validate_checkpoint

H100 = "0, NVIDIA H100 80GB HBM3, 9.0, 81559, 590.44.01"
SetUp = Callable[..., Path]


@pytest.fixture
def set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SetUp:
    """A machine that says this of itself; gives its Triton folder."""

    def make(gpus: tuple[str, ...] = (H100,), versions: tuple[str, str] = ("1.2.1", "10.14.1.48")):  # type: ignore[no-untyped-def]
        programs = tmp_path / "programs"
        programs.mkdir()
        texts = {
            "nvidia-smi": "\n".join(gpus),
            "python3": json.dumps(versions),
            "mpirun": "",
        }
        for name, text in texts.items():
            (programs / name).write_text(f"#!{sys.executable}\nprint({text!r})\n")
            (programs / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(programs))
        monkeypatch.setenv("COMPLLM_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NVIDIA_TRITON_SERVER_VERSION", "2.70.0")
        triton = tmp_path / "triton"
        for name in (
            "bin/tritonserver",
            "backends/tensorrtllm/libtriton_tensorrtllm.so",
            "backends/tensorrtllm/trtllmExecutorWorker",
            "backends/python/libtriton_python.so",
        ):
            (triton / name).parent.mkdir(parents=True, exist_ok=True)
            (triton / name).touch()
        encoder = tmp_path / "home" / "encoder" / "all-MiniLM-L6-v2"
        encoder.mkdir(parents=True)
        (encoder / "model.safetensors").touch()
        return triton

    return make


@pytest.fixture
def engines(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    entry = engine_entry(validate_checkpoint(tiny_checkpoint), max_lora_rank=8)
    adapters = [AdapterEntry("chemistry", 11, 8, "a")]
    write_engines(tmp_path / "engines", tiny_checkpoint, [entry], adapters)
    return tmp_path / "engines"


def _found(checks: tuple[Check, ...], name: str) -> Check:
    (check,) = (check for check in checks if check.name == name)
    return check


def test_right_machine_with_its_engines_is_healthy(set_up: SetUp, engines: Path) -> None:
    checks = examine_gpu(engines, triton=set_up())
    assert is_healthy(checks), checks
    assert "H100" in _found(checks, "GPUs").found
    assert "chemistry = 11" in _found(checks, "adapters").found
    assert "GiB before any KV cache" in _found(checks, "memory of GPU 0").found


def test_machine_without_anything_names_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    monkeypatch.delenv("NVIDIA_TRITON_SERVER_VERSION", raising=False)
    checks = examine_gpu(triton=tmp_path)
    assert not is_healthy(checks)
    assert _found(checks, "GPUs").status == "missing"
    assert "26.07-trtllm-python-py3" in _found(checks, "TensorRT-LLM").remedy
    assert all(check.remedy for check in checks if check.status != "ok")


def test_other_release_is_missing(set_up: SetUp) -> None:
    checks = examine_gpu(triton=set_up(versions=("1.3.0", "10.15.1")))
    assert _found(checks, "TensorRT-LLM").found == "1.3.0, not 1.2.1"


def test_engines_of_another_gpu_are_missing(set_up: SetUp, engines: Path) -> None:
    triton = set_up(gpus=("0, NVIDIA L4, 8.9, 23034, 590.44.01",))
    check = _found(examine_gpu(engines, triton=triton), "engines fit")
    assert check.status == "missing"
    assert "compute capability 9.0" in check.found


def test_engines_that_are_not_there_are_missing_only_when_named(
    set_up: SetUp, tmp_path: Path
) -> None:
    triton = set_up()
    assert _found(examine_gpu(triton=triton), "engines").status == "note"
    assert _found(examine_gpu(tmp_path / "none", triton=triton), "engines").status == "missing"


def test_two_kinds_of_gpus_are_a_note(set_up: SetUp) -> None:
    triton = set_up(gpus=(H100, "1, NVIDIA L4, 8.9, 23034, 590.44.01"))
    assert _found(examine_gpu(triton=triton), "kinds of GPUs").status == "note"


def test_adapter_of_another_type_is_missing(set_up: SetUp, engines: Path) -> None:
    path = engines / "adapters" / "11" / "model.lora_weights.npy"
    weights = np.zeros((1, 3, 4), np.float32)  # as many bytes: the size alone does not show it
    np.save(path, weights)
    check = _found(examine_gpu(engines, triton=set_up()), "adapters")
    assert check.status == "missing"
    assert "float16" in check.found + check.remedy


def test_command_ends_with_1_where_something_is_missing(
    set_up: SetUp, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up(gpus=())
    assert run(["doctor", "--gpu", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert not told["is_healthy"]
    assert {check["name"] for check in told["checks"]} >= {"GPUs", "TensorRT-LLM backend"}
