"""adapter_config.json of PEFT: is it a plain LoRA for this base, and how is each layer scaled?

Whatever changes the computation beyond y += scale * B A x is refused by name rather than ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compllm.errors import ArtefactError
from compllm.formats.json_files import read_json, words
from compllm.formats.shape import BaseShape, model_name

_Number = TypeVar("_Number", int, float)

# Field of LoraConfig -> what it asks for, in words. Any value but false, null or empty is refused.
_REFUSED = {
    "use_dora": "DoRA (magnitude vectors)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal LoRA",
    "fan_in_fan_out": "transposed weights (fan_in_fan_out)",
    "lora_bias": "biases on the adapter",
    "modules_to_save": "fully trained modules (modules_to_save)",
    "trainable_token_indices": "trained embeddings (trainable_token_indices)",
    "target_parameters": "bare parameters (target_parameters)",
    "layer_replication": "replicated layers (layer_replication)",
    "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
}
_USED = words(
    "peft_type base_model_name_or_path r lora_alpha rank_pattern alpha_pattern use_rslora bias "
    "init_lora_weights target_modules layers_to_transform"
)
# Of training, of loading, or said by the names of the tensors.
_WITHOUT_EFFECT = words(
    "task_type auto_mapping peft_version revision inference_mode lora_dropout exclude_modules "
    "layers_pattern megatron_config megatron_core loftq_config eva_config corda_config "
    "lora_ga_config qalora_group_size runtime_config ensure_weight_tying"
)
# Starts that also change the base's own weights: such an adapter needs its own base.
_BASE_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
_SAME_BASE = (
    "If they are the same weights (a 4-bit repack of it, for instance), say so: --same-base of "
    "build_openvino.py, or same_base = true in the adapter's table of the catalogue"
)


@dataclass(frozen=True, slots=True)
class LoraScales:
    """Rank and alpha of each layer, as PEFT resolves them."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    is_rslora: bool  # alpha / sqrt(rank) in place of alpha / rank
    targets: str | tuple[str, ...]  # regular expression of whole paths, or ends of them; (): any
    layers: frozenset[int]  # empty: any

    def scale(self, path: str, layer: int, rank: int) -> float:
        """Factor of B A at the module `path`, whose tensors have `rank`. Raises ArtefactError."""
        if not self._is_target(path) or (self.layers and layer not in self.layers):
            raise ArtefactError(
                f"{path}: it has tensors, but adapter_config.json does not name it in "
                "target_modules and layers_to_transform: PEFT would leave it out"
            )
        expected = _resolve(self.rank_pattern, path, self.rank)
        if expected != rank:
            raise ArtefactError(f"{path}: its rank is {rank}, the config says {expected}")
        alpha = _resolve(self.alpha_pattern, path, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rslora else rank)

    def _is_target(self, path: str) -> bool:
        """As peft.tuners.tuners_utils.check_target_module_exists finds it."""
        if self.targets in ("all-linear", ()):
            return True
        if isinstance(self.targets, str):
            return re.fullmatch(self.targets, path) is not None
        return any(path == each or path.endswith(f".{each}") for each in self.targets)


def read_lora_config(directory: Path, base: BaseShape, *, is_same_base: bool = False) -> LoraScales:
    """Validate adapter_config.json and the files beside it. Raises ArtefactError.

    is_same_base: the caller vouches for the base's weights, whatever name the adapter records.
    """
    config = read_json(directory / "adapter_config.json")
    if not (directory / "adapter_model.safetensors").is_file():
        if (directory / "adapter_model.bin").is_file():
            raise ArtefactError(
                "adapter_model.bin is a pickle and is not read: "
                "save it with safe_serialization=True"
            )
        raise ArtefactError(f"{directory / 'adapter_model.safetensors'} is missing")
    _check_kind(config)
    if not is_same_base:
        _check_base(config, directory, base)
    rank = config.get("r")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ArtefactError(f"rank (r) is {rank!r}, not a positive integer")
    return LoraScales(
        rank=rank,
        alpha=_number(config.get("lora_alpha", 8), "lora_alpha"),
        rank_pattern={k: int(v) for k, v in _pattern(config, "rank_pattern").items()},
        alpha_pattern=_pattern(config, "alpha_pattern"),
        is_rslora=bool(config.get("use_rslora")),
        targets=_targets(config.get("target_modules") or ()),
        layers=_layers(config.get("layers_to_transform")),
    )


def _check_kind(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ArtefactError(f"peft_type is {kind!r}; only LORA is served")
    for field, refused in _REFUSED.items():
        if config.get(field):
            raise ArtefactError(f"{refused} is not served ({field} is {config[field]!r})")
    if config.get("bias", "none") != "none":
        raise ArtefactError(
            f"trained biases are not served (bias is {config['bias']!r}, not 'none')"
        )
    for field in sorted(config.keys() - _REFUSED.keys() - _USED - _WITHOUT_EFFECT):
        if config[field]:
            raise ArtefactError(
                f"the field {field} ({config[field]!r}) of adapter_config.json is not known. If it "
                "changes nothing of what the adapter computes, remove it"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING_STARTS):
        raise ArtefactError(
            f"init_lora_weights {start!r} changed the base's own weights: save the adapter with "
            "path_initial_model_for_weight_conversion"
        )


def _check_base(config: Mapping[str, Any], directory: Path, base: BaseShape) -> None:
    """By weights hash where a manifest beside it has one, else by name; shapes come later."""
    trained_on, name = base_sha256(directory), _base_name(config)
    if trained_on and base.sha256:
        if trained_on != base.sha256:
            raise ArtefactError(
                f"made for {f'base {name}' if name else 'a base'} with weights {trained_on[:12]}, "
                f"this one{f' is {base.name} and' if base.name else ''} has {base.sha256[:12]}. "
                f"{_SAME_BASE}"
            )
        return
    if name and base.name and name.lower() != base.name.lower():
        raise ArtefactError(f"made for base {name}, this one is {base.name}. {_SAME_BASE}")


def base_sha256(directory: Path) -> str:
    """Hash of the base's weights, as the manifest beside an adapter records it; empty where it does
    not. Raises ArtefactError."""
    path = directory / "manifest.json"
    record = read_json(path) if path.is_file() else {}
    base = record.get("base")  # as train_lora.py writes it
    found = base.get("sha256") if isinstance(base, dict) else record.get("base_sha256")
    return found if isinstance(found, str) else ""


def base_name(directory: Path) -> str:
    """The base that a PEFT directory was trained on; empty where it does not say. Raises
    ArtefactError."""
    return _base_name(read_json(directory / "adapter_config.json"))


def _base_name(config: Mapping[str, Any]) -> str:
    return model_name(str(config.get("base_model_name_or_path") or ""))


def _targets(value: object) -> str | tuple[str, ...]:
    if isinstance(value, str):
        _check_expression(value, "target_modules")
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        raise ArtefactError(f"target_modules is {value!r}: neither a text nor a list of texts")
    return tuple(value)


def _layers(value: object) -> frozenset[int]:
    layers = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(each) is int for each in layers):
        raise ArtefactError(f"layers_to_transform is {value!r}: not numbers of layers")
    return frozenset(layers)


def _check_expression(text: str, where: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise ArtefactError(f"{where}: {text!r} is no regular expression: {error}") from error


def _pattern(config: Mapping[str, Any], field: str) -> dict[str, float]:
    value = config.get(field) or {}
    if not isinstance(value, dict):
        raise ArtefactError(f"{field} is {value!r}, not an object")
    for key in value:
        _check_expression(key, field)
    return {key: _number(number, f"{field} of {key}") for key, number in value.items()}


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ArtefactError(f"{what} is {value!r}, not a finite number")
    return value


def _resolve(pattern: Mapping[str, _Number], path: str, default: _Number) -> _Number:
    """The first pattern that fits the end of the path (peft.utils.other.get_pattern_key)."""
    for key, value in pattern.items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default
