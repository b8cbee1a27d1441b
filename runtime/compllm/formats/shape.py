"""The numbers of a base model that everything else must fit: what config.json says, validated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from compllm.errors import ArtefactError

ATTENTION_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_MODULES = ("gate_proj", "up_proj", "down_proj")
MODULES = ATTENTION_MODULES + MLP_MODULES  # every linear layer that an adapter may change


@dataclass(frozen=True, slots=True)
class BaseShape:
    """Sizes of a decoder, and which model it is."""

    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    name: str = (
        ""  # last part of the model's name; empty: unknown, adapters are not checked against it
    )
    sha256: str = ""  # of the weights; empty: unknown

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], *, name: str = "", sha256: str = ""
    ) -> BaseShape:
        """From a parsed config.json. Raises ArtefactError for a missing or contradictory size."""
        hidden = _positive(config, "hidden_size")
        num_heads = _positive(config, "num_attention_heads")
        num_kv_heads = _positive(config, "num_key_value_heads", num_heads)
        # What transformers takes where a config names no size.
        is_qwen3 = config.get("model_type") == "qwen3"
        usual = 128 if is_qwen3 else hidden // num_heads
        if config.get("head_dim") is None and hidden % num_heads and not is_qwen3:
            raise ArtefactError(
                f"config.json: hidden_size {hidden} is no multiple of {num_heads} heads"
            )
        if num_heads % num_kv_heads:
            raise ArtefactError(
                f"config.json: {num_heads} heads cannot share {num_kv_heads} key-value heads"
            )
        return cls(
            num_layers=_positive(config, "num_hidden_layers"),
            hidden=hidden,
            intermediate=_positive(config, "intermediate_size"),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=_positive(config, "head_dim", usual),
            vocab=_positive(config, "vocab_size"),
            name=name,
            sha256=sha256,
        )

    def module_shapes(self) -> dict[str, tuple[int, int]]:
        """(outputs, inputs) of each adaptable linear layer, in the order of MODULES."""
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        return {
            "q_proj": (q, self.hidden),
            "k_proj": (kv, self.hidden),
            "v_proj": (kv, self.hidden),
            "o_proj": (self.hidden, q),
            "gate_proj": (self.intermediate, self.hidden),
            "up_proj": (self.intermediate, self.hidden),
            "down_proj": (self.hidden, self.intermediate),
        }


def model_name(name_or_path: str) -> str:
    """The last part of a hub name or a path; the model of a path into the hub's cache."""
    parts = [part for part in name_or_path.replace("\\", "/").split("/") if part]
    for part in parts:
        if part.startswith("models--"):
            return part.rsplit("--", 1)[1]
    return parts[-1] if parts else ""


def _positive(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ArtefactError(f"config.json: {key} is {value!r}, not a positive integer")
    return value
