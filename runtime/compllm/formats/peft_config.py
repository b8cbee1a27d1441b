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
from compllm.formats.checkpoint import read_json
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
}
# Starts that also change the base's own weights: such an adapter needs its own base.
_BASE_CHANGING_STARTS = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True, slots=True)
class LoraScales:
    """Rank and alpha of each layer, as PEFT resolves them."""

    rank: int
    alpha: float
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]
    is_rslora: bool  # alpha / sqrt(rank) in place of alpha / rank

    def scale(self, path: str, rank: int) -> float:
        """Factor of B A at the module `path`, whose tensors have `rank`. Raises ArtefactError."""
        expected = _resolve(self.rank_pattern, path, self.rank)
        if expected != rank:
            raise ArtefactError(f"{path}: its rank is {rank}, the config says {expected}")
        alpha = _resolve(self.alpha_pattern, path, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rslora else rank)


def read_lora_config(directory: Path, base: BaseShape) -> LoraScales:
    """Validate adapter_config.json and the files beside it. Raises ArtefactError."""
    config = read_json(directory / "adapter_config.json")
    if not (directory / "adapter_model.safetensors").is_file():
        if (directory / "adapter_model.bin").is_file():
            raise ArtefactError(
                "adapter_model.bin is a pickle and is not read: "
                "save it with safe_serialization=True"
            )
        raise ArtefactError(f"{directory / 'adapter_model.safetensors'} is missing")
    _check_kind(config)
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
    )


def _check_kind(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ArtefactError(f"peft_type is {kind!r}; only LORA is served")
    for field, words in _REFUSED.items():
        if config.get(field):
            raise ArtefactError(f"{words} is not served ({field} is {config[field]!r})")
    if config.get("bias", "none") != "none":
        raise ArtefactError(
            f"trained biases are not served (bias is {config['bias']!r}, not 'none')"
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING_STARTS):
        raise ArtefactError(
            f"init_lora_weights {start!r} changed the base's own weights: save the adapter with "
            "path_initial_model_for_weight_conversion"
        )


def _check_base(config: Mapping[str, Any], directory: Path, base: BaseShape) -> None:
    """By weights hash where a manifest beside it has one, else by name; shapes come later."""
    recorded = directory / "manifest.json"
    trained_on = read_json(recorded).get("base_sha256") if recorded.is_file() else None
    if trained_on and base.sha256:
        if trained_on != base.sha256:
            raise ArtefactError(
                f"made for a base with weights {str(trained_on)[:12]}, "
                f"this one has {base.sha256[:12]}"
            )
        return
    name = _base_name(config)
    if name and base.name and name.lower() != base.name.lower():
        raise ArtefactError(
            f"made for base {name}, this one is {base.name}. If they are the same weights, set "
            f"base_model_name_or_path to {base.name} in {directory / 'adapter_config.json'}"
        )


def base_name(directory: Path) -> str:
    """The base that a PEFT directory was trained on; empty where it does not say. Raises
    ArtefactError."""
    return _base_name(read_json(directory / "adapter_config.json"))


def _base_name(config: Mapping[str, Any]) -> str:
    return model_name(str(config.get("base_model_name_or_path") or ""))


def _pattern(config: Mapping[str, Any], field: str) -> dict[str, float]:
    value = config.get(field) or {}
    if not isinstance(value, dict):
        raise ArtefactError(f"{field} is {value!r}, not an object")
    for key in value:
        try:
            re.compile(key)
        except re.error as error:
            raise ArtefactError(f"{field}: {key!r} is no regular expression: {error}") from error
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
