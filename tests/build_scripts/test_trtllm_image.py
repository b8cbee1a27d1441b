"""The wrong place to build is refused in one line that names the right one."""

from __future__ import annotations

from pathlib import Path

import pytest
from trtllm_tools import Tools

from compllm.build_scripts.trtllm.image import (
    IMAGES,
    find_image,
    inspect,
    look,
    same_version,
    visible_gpus,
)
from compllm.errors import ArtefactError

REMEDY = "run this inside the image tritonserver:26.07-trtllm-python-py3 with its GPUs"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    return Tools(tmp_path / "image", monkeypatch)


def refusal(tools: Tools) -> str:
    with pytest.raises(ArtefactError) as caught:
        inspect(IMAGES[0], tools.examples)
    assert REMEDY in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_pinned_image_is_seen_as_it_is(tools: Tools) -> None:
    seen = inspect(IMAGES[0], tools.examples)
    assert (seen.tensorrt_llm, seen.tensorrt, seen.release) == ("1.2.1", "10.14.1.48", "26.07")
    (gpu,) = seen.gpus
    assert (gpu.name, gpu.compute_capability) == ("NVIDIA H100 80GB HBM3", "9.0")
    assert gpu.memory_mib == 81559


def test_missing_tensorrt_llm_is_told(tools: Tools) -> None:
    (tools.bin / "trtllm-build").unlink()
    assert refusal(tools).startswith("TensorRT-LLM is missing (no trtllm-build)")


def test_missing_script_is_told(tools: Tools) -> None:
    (tools.examples / "hf_lora_convert.py").unlink()
    assert refusal(tools).startswith(f"{tools.examples}/hf_lora_convert.py is missing")


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"tensorrt_llm": "1.1.0"}, "TensorRT-LLM is 1.1.0, not 1.2.1"),
        ({"tensorrt_llm": "1.3.0rc15"}, "TensorRT-LLM is 1.3.0rc15, not 1.2.1"),
        ({"tensorrt": "10.13.3.9"}, "TensorRT is 10.13.3.9, not 10.14.1.48"),
    ],
)
def test_wrong_image_is_told(tools: Tools, versions: dict[str, str], said: str) -> None:
    tools.versions(**versions)
    assert refusal(tools).startswith(said)


def test_no_gpu_is_told(tools: Tools) -> None:
    tools.command("nvidia-smi", "echo 'NVIDIA-SMI has failed'; exit 9")
    assert refusal(tools).startswith("no GPU is visible")
    (tools.bin / "nvidia-smi").unlink()
    assert refusal(tools).startswith("no GPU is visible")


def test_python_that_cannot_run_has_no_versions(tools: Tools) -> None:
    tools.command("python3", "exit 1")
    assert (look().tensorrt_llm, look().tensorrt) == ("", "")
    assert refusal(tools).startswith("TensorRT-LLM is missing, not 1.2.1")


def test_odd_lines_of_nvidia_smi_are_no_gpus(tools: Tools) -> None:
    tools.gpus("0, NVIDIA L4, 8.9, [N/A], 590.44.01", "warning", "1, NVIDIA L4, 8.9, 23034, 590.1")
    assert [gpu.index for gpu in visible_gpus()] == [1]


def test_unknown_tag_is_told_with_the_known_ones() -> None:
    assert find_image("26.05-trtllm-python-py3").tensorrt_llm == "1.2.1"
    with pytest.raises(ArtefactError, match=r"use 26\.07-trtllm-python-py3, 26\.06-trtllm"):
        find_image("25.12-trtllm-python-py3")


@pytest.mark.parametrize(
    ("seen", "pinned", "same"),
    [
        ("10.14.1", "10.14.1.48", True),
        ("10.14.1.48.post1", "10.14.1.48", True),
        ("10.14.2", "10.14.1.48", False),
        ("10.14", "10.14.1.48", False),
        ("1.2.1", "1.2.1", True),
        ("1.2.10", "1.2.1", False),
        ("1.2.1rc1", "1.2.1", False),
        ("", "1.2.1", False),
    ],
)
def test_versions_agree_as_far_as_both_tell(seen: str, pinned: str, same: bool) -> None:
    assert same_version(seen, pinned) is same
