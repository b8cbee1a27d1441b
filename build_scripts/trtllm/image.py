"""The pinned image, its tools and its GPUs: is this a place where engines can be built?

An engine belongs to the TensorRT-LLM, the TensorRT and the GPU architecture that built it, so the
very image that serves it builds it. Everything is asked of the image's own programs; nothing of
TensorRT-LLM is imported here.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compllm.build_scripts.trtllm import flags
from compllm.errors import ArtefactError

EXAMPLES = Path("/app/examples")  # where the image keeps the scripts of its release
_TIMEOUT_S = 120.0
_VERSIONS = (
    "import importlib.metadata as m, json\n"
    "def version(name):\n"
    "    try:\n"
    "        return m.version(name)\n"
    "    except m.PackageNotFoundError:\n"
    "        return ''\n"
    "print(json.dumps([version('tensorrt_llm'), version('tensorrt')]))"
)


@dataclass(frozen=True, slots=True)
class Image:
    """A tag of the `tritonserver` image, from Triton's compatibility matrix."""

    tag: str
    tensorrt_llm: str
    tensorrt: str


# The tags with the last TensorRT-LLM release that compiles engines, newest first.
IMAGES = tuple(
    Image(f"{release}-trtllm-python-py3", "1.2.1", "10.14.1.48")
    for release in ("26.07", "26.06", "26.05", "26.04")
)


@dataclass(frozen=True, slots=True)
class SeenGpu:
    """A GPU as nvidia-smi reports it."""

    index: int
    name: str
    compute_capability: str
    memory_mib: int  # total
    driver: str


@dataclass(frozen=True, slots=True)
class Environment:
    """What the build, or the server, runs in."""

    tensorrt_llm: str
    tensorrt: str
    release: str  # of the Triton image, as it says itself; empty where it does not
    gpus: tuple[SeenGpu, ...]


def find_image(tag: str) -> Image:
    """The image of this tag. Raises ArtefactError with the tags there are."""
    for image in IMAGES:
        if image.tag == tag:
            return image
    known = ", ".join(image.tag for image in IMAGES)
    raise ArtefactError(f"image tag {tag!r} is not one that compiles engines here: use {known}")


def inspect(image: Image, examples: Path = EXAMPLES) -> Environment:
    """The environment, checked against `image`. Raises ArtefactError that says what to run instead.

    examples: the folder with convert_checkpoint.py and the other scripts of the release.
    """
    remedy = f"run this inside the image tritonserver:{image.tag} with its GPUs (--gpus all)"
    if shutil.which(flags.program("build")) is None:
        raise ArtefactError(f"TensorRT-LLM is missing (no {flags.program('build')}): {remedy}")
    for tool in ("convert_llama", "convert_qwen", "quantize", "lora_convert"):
        script = script_path(tool, examples)
        if not script.is_file():
            raise ArtefactError(
                f"{script} is missing: {remedy}, or name its folder with --examples"
            )
    seen = look()
    for name, version, pinned in (
        ("TensorRT-LLM", seen.tensorrt_llm, image.tensorrt_llm),
        ("TensorRT", seen.tensorrt, image.tensorrt),
    ):
        if not same_version(version, pinned):
            raise ArtefactError(f"{name} is {version or 'missing'}, not {pinned}: {remedy}")
    if not seen.gpus:
        raise ArtefactError(f"no GPU is visible: {remedy}")
    return seen


def look() -> Environment:
    """What is here, unchecked: empty versions and no GPUs where there are none."""
    output = _run(["python3", "-c", _VERSIONS])
    try:
        tensorrt_llm, tensorrt = json.loads(output or '["", ""]')
    except ValueError:
        tensorrt_llm = tensorrt = ""
    release = os.environ.get("NVIDIA_TRITON_SERVER_VERSION", "")
    return Environment(str(tensorrt_llm), str(tensorrt), release, visible_gpus())


def script_path(tool: str, examples: Path) -> Path:
    """Where the release keeps this script."""
    return examples / Path(flags.program(tool)).relative_to("examples")


def same_version(seen: str, pinned: str) -> bool:
    """Equal, or one has more digits than the other: 10.14.1 and 10.14.1.48."""
    one, two = seen.split("."), pinned.split(".")
    shared = min(len(one), len(two))
    return shared >= 3 and one[:shared] == two[:shared]


def visible_gpus() -> tuple[SeenGpu, ...]:
    """The GPUs of this machine; none where the driver or nvidia-smi is missing."""
    output = _run(
        [
            "nvidia-smi",
            "--query-gpu=index,name,compute_cap,memory.total,driver_version",
            "--format=csv,noheader,nounits",
        ]
    )
    gpus = []
    for line in (output or "").splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 5 and cells[0].isdigit() and cells[3].isdigit():
            gpus.append(SeenGpu(int(cells[0]), cells[1], cells[2], int(cells[3]), cells[4]))
    return tuple(gpus)


def _run(command: Sequence[str]) -> str | None:
    """Its stdout; None when it cannot run or fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
