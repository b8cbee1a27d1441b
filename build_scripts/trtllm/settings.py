"""engines/gpu.toml: which engines, for which GPU, within which limits.

Read before the plan. A value is the GPU's default unless [engine] overrides it; every key, type and
range is checked here, so that later modules take the numbers as they are.
"""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

from compllm.build_scripts.trtllm.image import IMAGES
from compllm.config import read_toml
from compllm.errors import ConfigError
from compllm.paths import resource_dir

Topology = Literal["shared", "per-expert"]
Quantisation = Literal["none", "fp8", "int8", "int4", "int4_awq"]
KvDtype = Literal["auto", "fp8", "int8"]

_T = TypeVar("_T")
_GPU_KEYS = ("label", "compute_capability", "memory_gib")  # of [gpus.*]; the rest are defaults


def _number(default: int, low: int, high: int) -> Any:
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """What one engine is built with."""

    dtype: Literal["float16", "bfloat16"] = "float16"
    tp: int = _number(1, 1, 64)  # GPUs that share each layer
    pp: int = _number(1, 1, 64)  # GPUs that share the layers
    quantisation: Quantisation = "none"
    kv_cache_dtype: KvDtype = "auto"
    kv_cache_type: Literal["paged", "continuous"] = "paged"
    paged_context_fmha: bool = True
    tokens_per_block: int = _number(32, 8, 1024)
    multiple_profiles: bool = True  # kernels chosen for small and for large batches
    cuda_graphs: bool = True  # of decoding steps; never with adapters, which change every step
    max_batch_size: int = _number(64, 1, 4096)
    max_num_tokens: int = _number(8192, 64, 1_048_576)  # of one step
    max_seq_len: int = _number(4096, 64, 1_048_576)  # prompt and answer
    full_sequences: int = _number(8, 1, 4096)  # of max_seq_len that the KV cache must hold at once
    calib_dataset: str = "cnn_dailymail"
    calib_size: int = _number(512, 1, 65536)

    @property
    def world_size(self) -> int:
        """GPUs, and rank files, of one engine."""
        return self.tp * self.pp


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """How much room the adapters get."""

    max_rank: int = _number(0, 0, 512)  # 0: the largest of the adapters
    gpu_adapters: int = _number(0, 0, 4096)  # kept on the GPU at once; 0: all


@dataclass(frozen=True, slots=True)
class Gpu:
    """One kind of GPU."""

    name: str
    label: str
    compute_capability: str  # as nvidia-smi prints it; an engine runs on this one alone
    memory_gib: float  # total, as the driver reports it

    @property
    def has_fp8(self) -> bool:
        return float(self.compute_capability) >= 8.9


@dataclass(frozen=True, slots=True)
class GpuSettings:
    """engines/gpu.toml, resolved for one GPU."""

    path: Path
    topology: Topology
    gpu: Gpu
    num_gpus: int
    image: str  # tag
    engine: EngineSettings
    explicit: frozenset[str]  # keys of [engine] that the user wrote: never adjusted silently
    lora: LoraSettings
    checkpoints: Mapping[str, Path]  # expert -> full fine-tune
    gpus: tuple[Gpu, ...]  # every kind of the file

    def engine_for(self, engine: EngineSettings, *, has_adapters: bool) -> EngineSettings:
        """The settings of one engine. By default an engine of its own for an expert is fp8 on GPUs
        that have it. One with adapters is not: they are float16 and their products too."""
        is_default = "quantisation" not in self.explicit and engine.kv_cache_dtype != "int8"
        if self.topology != "per-expert" or has_adapters or not (is_default and self.gpu.has_fp8):
            return engine
        return replace(engine, quantisation="fp8")


def default_settings_path() -> Path:
    return resource_dir("engines") / "gpu.toml"


def load_settings(
    path: Path | None = None,
    *,
    gpu: str | None = None,
    topology: str | None = None,
    num_gpus: int | None = None,
) -> GpuSettings:
    """Read and check the settings; arguments override the file. Raises ConfigError."""
    path = path or default_settings_path()
    top = read_toml(path)
    known = ("topology", "gpu", "num_gpus", "image", "engine", "lora", "experts", "gpus")
    _refuse_unknown(path, "", top, known)
    for key, value in (("gpu", gpu), ("topology", topology), ("num_gpus", num_gpus)):
        if value is not None:
            top[key] = value
    profiles = _table(path, "gpus", top.get("gpus", {}))
    gpus = {name: _gpu(path, name, value) for name, value in profiles.items()}
    chosen = top.get("gpu", "h100")
    _one_of(path, "gpu", chosen, list(gpus))
    _one_of(path, "topology", top.get("topology", "shared"), typing.get_args(Topology))
    image = top.get("image", IMAGES[0].tag)
    _one_of(path, "image", image, [known_image.tag for known_image in IMAGES])
    count = top.get("num_gpus", 1)
    if type(count) is not int or not 1 <= count <= 1024:
        raise _error(path, "num_gpus", count, "an integer from 1 to 1024")
    overrides = _table(path, "engine", top.get("engine", {}))
    defaults = {
        name: {key: value for key, value in values.items() if key not in _GPU_KEYS}
        for name, values in profiles.items()
    }
    read(path, "engine", overrides, EngineSettings)
    for name, values in defaults.items():
        read(path, f"gpus.{name}", values, EngineSettings)
    return GpuSettings(
        path=path,
        topology=typing.cast(Topology, top.get("topology", "shared")),
        gpu=gpus[chosen],
        num_gpus=count,
        image=image,
        engine=read(path, "engine", {**defaults[chosen], **overrides}, EngineSettings),
        explicit=frozenset(overrides),
        lora=read(path, "lora", top.get("lora", {}), LoraSettings),
        checkpoints=_checkpoints(path, top.get("experts", {})),
        gpus=tuple(gpus.values()),
    )


def read(path: Path, section: str, values: Any, kind: type[_T]) -> _T:
    """A table as a dataclass: unknown keys, wrong types and numbers out of range are errors."""
    table = _table(path, section, values)
    declared = {each.name: each for each in fields(typing.cast(Any, kind))}
    _refuse_unknown(path, section, table, declared)
    hints = typing.get_type_hints(kind)
    for key, value in table.items():
        _check_value(path, f"{section}.{key}", value, hints[key], declared[key])
    for key, each in declared.items():
        if each.default is MISSING and key not in table:
            raise ConfigError(f"{path}: {section}.{key} is missing")
    return kind(**table)


def _check_value(path: Path, key: str, value: object, hint: Any, each: Field[Any]) -> None:
    if typing.get_origin(hint) is Literal:
        _one_of(path, key, value, typing.get_args(hint))
        return
    low, high = each.metadata.get("range", (None, None))
    is_type = type(value) in ((int, float) if hint is float else (hint,))
    if not is_type or (low is not None and not low <= typing.cast(int, value) <= high):
        nouns = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
        span = f" from {low} to {high}" if low is not None else ""
        raise _error(path, key, value, nouns[hint] + span)


def _gpu(path: Path, name: str, values: Any) -> Gpu:
    section = f"gpus.{name}"
    table = _table(path, section, values)
    own = {key: table[key] for key in _GPU_KEYS if key in table}
    gpu = read(path, section, {**own, "name": name}, Gpu)
    major, _, minor = gpu.compute_capability.partition(".")
    if not (major.isdigit() and minor.isdigit()):
        raise _error(path, f"{section}.compute_capability", gpu.compute_capability, "like '9.0'")
    if not 1 <= gpu.memory_gib <= 4096:
        raise _error(path, f"{section}.memory_gib", gpu.memory_gib, "a number from 1 to 4096")
    return gpu


def _checkpoints(path: Path, experts: Any) -> dict[str, Path]:
    result = {}
    for name, values in _table(path, "experts", experts).items():
        section = f"experts.{name}"
        table = _table(path, section, values)
        _refuse_unknown(path, section, table, ("checkpoint",))
        folder = table.get("checkpoint")
        if not isinstance(folder, str) or not folder:
            raise _error(path, f"{section}.checkpoint", folder, "a directory")
        result[name] = path.parent / Path(folder).expanduser()
    return result


def _table(path: Path, section: str, values: Any) -> dict[str, Any]:
    if not isinstance(values, dict):
        raise _error(path, section, values, "a table")
    return values


def _one_of(path: Path, key: str, value: object, allowed: Iterable[object]) -> None:
    if value not in allowed:
        raise _error(path, key, value, "one of " + ", ".join(map(str, allowed)))


def _refuse_unknown(
    path: Path, section: str, table: Mapping[str, Any], known: Iterable[str]
) -> None:
    for key in table:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            where = f"{section}.{key}" if section else key
            raise ConfigError(f"{path}: unknown key {where}{hint}")


def _error(path: Path, key: str, value: object, expected: str) -> ConfigError:
    return ConfigError(f"{path}: {key} = {value!r}: expected {expected}")
