"""manifest.json of a directory of TensorRT-LLM engines: what they are, from what, for which GPU.

The runner writes it last; make_triton_repo.py and the server read it first. A directory:

    manifest.json
    <engine>/config.json, rank<N>.engine     one folder an engine, named as its Triton model
    adapters/<lora_task_id>/*.npy            as the client sends them
    tokenizer/                               the base's
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compllm.build_scripts.trtllm.image import Environment, same_version
from compllm.build_scripts.trtllm.legacy_form import Rope
from compllm.errors import ArtefactError
from compllm.formats.json_files import read_json
from compllm.formats.manifest import MANIFEST_FILE, FileEntry, verify_files
from compllm.paths import home_dir

FORMAT = "compllm-trtllm/2"  # rises when older directories can no longer be read
ADAPTERS, TOKENIZER = "adapters", "tokenizer"
_AGAIN = "build it again with build_trtllm.py"


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """One engine."""

    name: str  # of its folder and of its Triton model
    expert: str  # "base" or the expert's name
    key: str  # hash over all it was built from; equal keys need no new build
    devices: tuple[int, ...]  # GPUs it was planned for, one a rank
    settings: Mapping[str, Any]  # EngineSettings
    rope: Mapping[str, Any]  # Rope, of the checkpoint
    lora_modules: tuple[str, ...]  # empty: without the LoRA plug-in
    max_lora_rank: int
    commands: tuple[str, ...]  # that built it
    memory: Mapping[str, int]  # EngineMemory: bytes on each GPU
    kv_tokens: int  # max_tokens_in_paged_kv_cache
    kv_fraction: float  # kv_cache_free_gpu_mem_fraction, alone on its GPUs
    lora_fraction: float  # lora_cache_gpu_memory_fraction


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """One adapter that the base's engine serves."""

    name: str
    task_id: int  # lora_task_id, and its folder's name
    rank: int
    sha256: str  # of its factors


@dataclass(frozen=True, slots=True)
class TrtManifest:
    """The record of one directory of engines."""

    topology: str
    image: str  # tag that built it
    versions: Mapping[str, str]  # compllm, tensorrt_llm, tensorrt, triton
    gpu: str  # as nvidia-smi names it
    compute_capability: str
    num_gpus: int  # that the plan is for
    base_name: str
    base_sha256: str
    engines: tuple[EngineEntry, ...]  # the base's first
    adapters: tuple[AdapterEntry, ...]
    files: Mapping[str, FileEntry]  # every file but the manifest, by path below the directory

    def engine(self, expert: str) -> EngineEntry:
        """The engine of this expert or of "base". Raises ArtefactError."""
        for entry in self.engines:
            if entry.expert == expert:
                return entry
        there = ", ".join(entry.expert for entry in self.engines)
        raise ArtefactError(f"there is no engine of {expert!r}: there are {there}")

    def write(self, directory: Path) -> None:
        """Into `directory`, which is being made and not yet in use."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2)
        (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> TrtManifest:
        """Raises ArtefactError when there is none, when it is damaged or of another format."""
        path = directory / MANIFEST_FILE
        if not path.is_file():
            raise ArtefactError(
                f"{directory} holds no finished TensorRT-LLM engines (no manifest.json): {_AGAIN}"
            )
        value = read_json(path)
        form = value.pop("format", None)
        if form != FORMAT:
            raise ArtefactError(f"{path} has format {form!r}, read is {FORMAT!r}: {_AGAIN}")
        try:
            return _parse(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(f"{path} is damaged ({error!r}): {_AGAIN}") from error

    def verify(self, directory: Path, *, is_deep: bool = True) -> None:
        """Raises ArtefactError unless the directory holds exactly what was built.

        is_deep: hashes too, not only sizes.
        """
        verify_files(directory, self.files, remedy=_AGAIN, is_deep=is_deep)
        for engine in self.engines:
            check_engine(directory / engine.name, engine, self.versions)

    def check_serving(self, serving: Environment) -> None:
        """Raises ArtefactError unless these engines run in this image on these GPUs."""
        for name, seen in (
            ("tensorrt_llm", serving.tensorrt_llm),
            ("tensorrt", serving.tensorrt),
        ):
            if not same_version(seen, self.versions[name]):
                raise ArtefactError(
                    f"the engines were built with {name} {self.versions[name]}, here is "
                    f"{seen or 'none'}: serve them from the image tritonserver:{self.image}, "
                    f"or {_AGAIN} in this one"
                )
        needed = 1 + max(device for engine in self.engines for device in engine.devices)
        if len(serving.gpus) < needed:
            raise ArtefactError(
                f"the engines are planned for {needed} GPUs, {len(serving.gpus)} are visible: "
                f"give the container more of them, or {_AGAIN} with fewer (num_gpus)"
            )
        for gpu in serving.gpus[:needed]:
            if gpu.compute_capability != self.compute_capability:
                raise ArtefactError(
                    f"the engines were built for {self.gpu} (compute capability "
                    f"{self.compute_capability}), GPU {gpu.index} is {gpu.name} "
                    f"({gpu.compute_capability}): {_AGAIN} on it"
                )


def default_dir() -> Path:
    """Where engines go by default."""
    return home_dir() / "engines" / "trtllm"


def check_engine(directory: Path, entry: EngineEntry, versions: Mapping[str, str]) -> None:
    """Raises ArtefactError unless trtllm-build left there a whole engine of these settings, with
    the rotary positions of its checkpoint."""
    settings, max_lora_rank = entry.settings, entry.max_lora_rank
    config = read_json(directory / "config.json")
    version = str(config.get("version"))
    if not same_version(version, versions["tensorrt_llm"]):
        raise ArtefactError(
            f"{directory} was built by TensorRT-LLM {version}, not {versions['tensorrt_llm']}: "
            f"{_AGAIN}"
        )
    world_size = settings["tp"] * settings["pp"]
    built = _section(config, "build_config")
    pretrained = _section(config, "pretrained_config")
    mapping = _section(pretrained, "mapping")
    expected: dict[str, tuple[object, object]] = {"world_size": (mapping, world_size)}
    for key in ("max_batch_size", "max_num_tokens", "max_seq_len"):
        expected[key] = (built, settings[key])
    if max_lora_rank:
        expected["max_lora_rank"] = (_section(built, "lora_config"), max_lora_rank)
    for key, (section, value) in expected.items():
        seen = section.get(key) if isinstance(section, dict) else None
        if seen != value:
            raise ArtefactError(
                f"{directory / 'config.json'}: {key} is {seen!r}, {value!r} was asked for: {_AGAIN}"
            )
    if differs := Rope(**entry.rope).difference_from(pretrained):
        raise ArtefactError(f"{directory / 'config.json'}: {differs}: {_AGAIN}")
    for rank in range(world_size):
        path = directory / f"rank{rank}.engine"
        if not path.is_file() or path.stat().st_size == 0:
            raise ArtefactError(f"{directory} is half-built: {path.name} is missing: {_AGAIN}")


def _section(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    section = value.get(key)
    return section if isinstance(section, dict) else {}


def _parse(value: dict[str, Any]) -> TrtManifest:
    engines = tuple(
        EngineEntry(
            **{
                **entry,
                "devices": tuple(map(int, entry["devices"])),
                "lora_modules": tuple(entry["lora_modules"]),
                "commands": tuple(entry["commands"]),
            }
        )
        for entry in value["engines"]
    )
    files = {name: FileEntry(**entry) for name, entry in value["files"].items()}
    for name in (*files, *(engine.name for engine in engines)):
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name!r} is outside the directory")
    if not engines or not all(engine.devices for engine in engines):
        raise ValueError("no engine, or one without a GPU")
    adapters = tuple(AdapterEntry(**entry) for entry in value["adapters"])
    return TrtManifest(**{**value, "engines": engines, "adapters": adapters, "files": files})
