"""A checkpoint as transformers 4.57 reads it, which is what TensorRT-LLM 1.2.1 reads it with.

transformers 5 writes `rope_parameters`. The older one does not know the key and takes its default:
a rotary base of 10,000 where the checkpoint has 100,000, and no scaling. Its tokenizer class and
its list of further special tokens are unknown there too. The scripts of the image therefore never
see the user's directory: they get one with the same weights and these two files rewritten.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compllm.errors import ArtefactError
from compllm.formats.json_files import read_json

# What the image's scripts convert: the embedded engine's architectures, and more.
CONVERTIBLE = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
THETA = 10000.0  # of both transformers where a config names none
# What the engine's attention computes as transformers does, with the keys that it needs.
_SCALINGS: Mapping[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "llama3": (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ),
}
_REWRITTEN = ("config.json", "tokenizer_config.json")


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary positions: what the engine must have been built with."""

    theta: float
    scaling: Mapping[str, Any] | None = None  # with `rope_type`; None: plain

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str = "config.json") -> Rope:
        """Of a config in either form. Raises ArtefactError for what TensorRT-LLM cannot compute."""
        new, old = (config.get(key) or {} for key in ("rope_parameters", "rope_scaling"))
        if not isinstance(new, dict) or not isinstance(old, dict):
            raise ArtefactError(f"{where}: rope_parameters or rope_scaling is not an object")
        if any(isinstance(value, dict) for value in new.values()):
            raise ArtefactError(
                f"{where}: rope_parameters differ by layer ({', '.join(map(str, new))}): "
                "TensorRT-LLM 1.2.1 has one for all layers"
            )
        given = {**old, **new}
        theta = given.pop("rope_theta", None) or config.get("rope_theta") or THETA
        if type(theta) not in (int, float) or theta <= 0:
            raise ArtefactError(f"{where}: rope_theta is {theta!r}, expected a positive number")
        kind = given.pop("rope_type", None) or given.pop("type", None) or "default"
        given.pop("type", None)
        partial = given.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
        if partial not in (None, 1, 1.0):
            raise ArtefactError(
                f"{where}: partial_rotary_factor is {partial!r}: TensorRT-LLM turns whole heads"
            )
        if kind == "default":
            return cls(float(theta))
        if kind not in _SCALINGS:
            raise ArtefactError(
                f"{where}: rope type {kind!r}: TensorRT-LLM engines are built with "
                f"default, {' and '.join(_SCALINGS)} here"
            )
        if missing := [key for key in _SCALINGS[kind] if key not in given]:
            raise ArtefactError(f"{where}: rope type {kind!r} lacks {', '.join(missing)}")
        return cls(float(theta), {"rope_type": kind, **{k: given[k] for k in _SCALINGS[kind]}})

    def difference_from(self, built: Mapping[str, Any]) -> str | None:
        """How the `pretrained_config` of a built engine differs; None where it does not."""
        base, scaling = built.get("rotary_base"), built.get("rotary_scaling") or {}
        if not isinstance(base, int | float) or float(base) != self.theta:
            return f"rotary_base is {base!r}, the checkpoint has {self.theta:g}"
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        wanted = self.scaling or {"rope_type": "default"}
        if kind != wanted["rope_type"]:
            return f"rotary_scaling is of type {kind!r}, the checkpoint has {wanted['rope_type']!r}"
        for key, value in wanted.items():
            if key != "rope_type" and scaling.get(key) != value:
                return f"rotary_scaling.{key} is {scaling.get(key)!r}, the checkpoint has {value!r}"
        return None


def legacy_config(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Any]:
    """A model's config in the form of transformers 4.57. Raises ArtefactError."""
    rope = Rope.from_config(config, where)
    made = {key: value for key, value in config.items() if key != "rope_parameters"}
    made["rope_theta"] = rope.theta
    made["rope_scaling"] = dict(rope.scaling) if rope.scaling is not None else None
    if "dtype" in made:
        made["torch_dtype"] = made.pop("dtype")
    return made


def legacy_tokenizer(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's config in that form."""
    made = dict(config)
    if made.get("tokenizer_class") == "TokenizersBackend":
        made["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(made.get("extra_special_tokens"), list):
        known = made.get("additional_special_tokens") or []
        made["additional_special_tokens"] = known + made.pop("extra_special_tokens")
    return made


def write_legacy(checkpoint: Path, to: Path) -> None:
    """Fill the empty directory `to`: links to the checkpoint's files, and the rewritten ones."""
    for path in sorted(checkpoint.iterdir()):
        if path.is_file() and path.name not in _REWRITTEN:
            (to / path.name).symlink_to(path.resolve())
    write_configs(checkpoint, to)


def write_configs(checkpoint: Path, to: Path, **changes: Any) -> None:
    """The rewritten files alone; `changes`: keys of config.json with other values."""
    config = legacy_config(read_json(checkpoint / "config.json"), str(checkpoint / "config.json"))
    tokenizer = legacy_tokenizer(read_json(checkpoint / "tokenizer_config.json"))
    for name, value in zip(_REWRITTEN, ({**config, **changes}, tokenizer), strict=True):
        (to / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
