"""Can TensorRT-LLM engines be built and served here: the checks of `compllm doctor --gpu`.

Beside `doctor.py`, with the same kind of answers. launch.sh of a repository runs it before Triton
starts, so that engines of another image or GPU are refused in one line.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from compllm import paths
from compllm.backends.adapter_files import read_converted
from compllm.build_scripts.trtllm.image import IMAGES, Environment, look, same_version
from compllm.build_scripts.trtllm.record import ADAPTERS, TrtManifest, default_dir
from compllm.cli.doctor import Check
from compllm.errors import ArtefactError, ConfigError

TRITON = Path("/opt/tritonserver")
_SHARED_MEMORY = Path("/dev/shm")
_MIN_SHARED_MEMORY_GB = 1.0  # NCCL of several ranks, and Triton's Python backend
_IMAGE = f"run it in the image tritonserver:{IMAGES[0].tag}, with its GPUs (--gpus all)"


def examine_gpu(engines: Path | None = None, *, triton: Path = TRITON) -> tuple[Check, ...]:
    """Every check, in the order in which faults should be mended. engines: what build_trtllm.py
    made; None looks at its default place, where nothing need be yet."""
    seen = look()
    checks: list[Check] = [*_gpus(seen), *_image(seen), *_triton(triton), *_machine()]
    return (*checks, *_engines(engines, seen))


def _gpus(seen: Environment) -> Iterator[Check]:
    if not seen.gpus:
        remedy = "install the driver and the container toolkit, or give the container --gpus all"
        yield Check("GPUs", "missing", "nvidia-smi is missing or shows none", remedy)
        return
    told = [
        f"{gpu.index}: {gpu.name}, {gpu.memory_mib / 1024:.1f} GiB, compute capability "
        f"{gpu.compute_capability}, driver {gpu.driver}"
        for gpu in seen.gpus
    ]
    yield Check("GPUs", "ok", "; ".join(told))
    if len({gpu.compute_capability for gpu in seen.gpus}) > 1:
        remedy = "show the container GPUs of one kind (CUDA_VISIBLE_DEVICES)"
        yield Check("kinds of GPUs", "note", "an engine runs on the kind it was built on", remedy)


def _image(seen: Environment) -> Iterator[Check]:
    image = IMAGES[0]
    for name, version, pinned in (
        ("TensorRT-LLM", seen.tensorrt_llm, image.tensorrt_llm),
        ("TensorRT", seen.tensorrt, image.tensorrt),
    ):
        if not version:
            yield Check(name, "missing", "not installed", _IMAGE)
        elif not same_version(version, pinned):
            yield Check(name, "missing", f"{version}, not {pinned}", _IMAGE)
        else:
            yield Check(name, "ok", version)
    release = seen.release or "not one of Triton's containers"
    yield _ok("Triton image", bool(seen.release), release, _IMAGE)


def _triton(triton: Path) -> Iterator[Check]:
    backend = triton / "backends" / "tensorrtllm"
    for name, path in (
        ("tritonserver", triton / "bin" / "tritonserver"),
        ("TensorRT-LLM backend", backend / "libtriton_tensorrtllm.so"),
        ("executor worker", backend / "trtllmExecutorWorker"),
        ("Python backend", triton / "backends" / "python" / "libtriton_python.so"),
    ):
        yield _ok(name, path.is_file(), str(path), _IMAGE)
    mpirun = shutil.which("mpirun")
    yield _ok("mpirun", mpirun is not None, mpirun or "not on PATH", _IMAGE)


def _machine() -> Iterator[Check]:
    try:
        size_gb = shutil.disk_usage(_SHARED_MEMORY).total / 1e9
    except OSError:
        size_gb = 0.0
    found = f"{size_gb:.1f} GB in {_SHARED_MEMORY}"
    is_enough = size_gb >= _MIN_SHARED_MEMORY_GB
    remedy = "give the container more: --shm-size 2g"
    yield Check("shared memory", "ok" if is_enough else "note", found, "" if is_enough else remedy)
    encoder = paths.encoder_dir()
    has_encoder = (encoder / "model.safetensors").is_file()
    remedy = "python -m compllm.build_scripts.fetch_base fetches it"
    yield _ok("sentence encoder", has_encoder, str(encoder), remedy)


def _engines(directory: Path | None, seen: Environment) -> Iterator[Check]:
    place = directory or default_dir()
    if directory is None and not place.exists():
        yield Check("engines", "note", f"none in {place}", "build_trtllm.py builds them")
        return
    try:
        manifest = TrtManifest.read(place)
        # Hashing tens of gigabytes would hold up every start: sizes and each engine's own record.
        manifest.verify(place, is_deep=False)
    except ArtefactError as error:
        yield _fault("engines", error)
        return
    told = ", ".join(f"{e.name} on GPU {'+'.join(map(str, e.devices))}" for e in manifest.engines)
    yield Check("engines", "ok", f"{place}: {manifest.topology}, {told}")
    try:
        manifest.check_serving(seen)
        yield Check("engines fit", "ok", f"{manifest.gpu}, image {manifest.image}")
    except ArtefactError as error:
        yield _fault("engines fit", error)
    yield from _memory(manifest, seen)
    yield from _adapters(manifest, place)


def _memory(manifest: TrtManifest, seen: Environment) -> Iterator[Check]:
    """Weights and what else is fixed, of every engine on a GPU, beside what the GPU has."""
    for gpu in seen.gpus:
        here = [entry.memory for entry in manifest.engines if gpu.index in entry.devices]
        fixed = ("weights", "activations", "runtime", "lora_gpu")
        needed = sum(memory[key] for memory in here for key in fixed)
        if not here:
            continue
        found = f"{needed / 2**30:.1f} of {gpu.memory_mib / 1024:.1f} GiB before any KV cache"
        is_enough = needed < gpu.memory_mib * 2**20
        remedy = "build for this GPU: build_trtllm.py --gpu"
        yield _ok(f"memory of GPU {gpu.index}", is_enough, found, remedy)


def _adapters(manifest: TrtManifest, place: Path) -> Iterator[Check]:
    if not manifest.adapters:
        return
    try:
        for adapter in manifest.adapters:
            if read_converted(place / ADAPTERS / str(adapter.task_id)) is None:
                raise ArtefactError(f"adapter {adapter.name} is missing: build it again")
    except ConfigError as error:
        yield _fault("adapters", error)
        return
    told = ", ".join(f"{each.name} = {each.task_id}" for each in manifest.adapters)
    yield Check("adapters", "ok", f"{told}: float16 weights, 4 columns of lora_config")


def _ok(name: str, is_ok: bool, found: str, remedy: str) -> Check:
    return Check(name, "ok", found) if is_ok else Check(name, "missing", found, remedy)


def _fault(name: str, error: ConfigError) -> Check:
    """Our errors end with their remedy, after the last colon."""
    found, _, remedy = str(error).rpartition(": ")
    return Check(name, "missing", found or remedy, remedy)
