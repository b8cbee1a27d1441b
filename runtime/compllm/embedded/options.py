"""The options of the embedded engine, and how the parameters of its Triton model set them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from compllm.errors import ConfigError
from compllm.niceness import NICENESS

if TYPE_CHECKING:
    from compllm.embedded.runner import AdapterForm

_LOWEST = {
    "max_batch_size": 1,
    "max_num_tokens": 1,
    "max_queue_size": 1,
    "kv_cache_tokens": 1,
    "max_adapters": 0,
    "num_threads": 0,
    "stream_interval_ms": 0,
    "max_lora_rank": 1,
}


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """Limits of the engine, named as in TensorRT-LLM where it has them."""

    max_batch_size: int = 32  # sequences in a step
    max_num_tokens: int = 256  # tokens in a step: decodes plus prefill chunks
    max_queue_size: int = 1024  # requests waiting; more are refused
    kv_cache_tokens: int = 32 * 1024  # tokens the cache holds
    # u8 | f16 | f32; empty: f16 for an int8 engine (u8 halves the cache, and a decoding step
    # takes 11 to 45 % longer: benchmarks/engine/bench_decode.py), f32 for an fp16 one
    kv_precision: str = ""
    max_adapters: int = 32  # slots; at least as many as the engine has adapters
    # Adapters as in TensorRT-LLM's LoRA cache: none is there at the start, each comes with a
    # request that brings its weights, and weights for an id that is there are not looked at.
    is_lora_cache: bool = False
    adapter_form: AdapterForm = "auto"
    is_prefix_reused: bool = True
    num_threads: int = 0  # 0: as many as there are cores
    # A streamed request's responses are so far apart at least, but for its first token and for
    # the ends of lines; 0: one a token. Each costs client and server 0.6 ms beside a decoding step.
    stream_interval_ms: float = 20.0
    # Of the Triton model's process and of the session of a server that we start: see niceness.py.
    # An Executor in a process of your own leaves that as it is.
    niceness: int = NICENESS
    # Load the tokenizer of guides and compile the plan's guide at the start (two seconds), not with
    # the first request that has one.
    is_guide_warm: bool = False
    # A client may send adapters up to this rank.
    max_lora_rank: int = 64

    def __post_init__(self) -> None:
        """Raises ConfigError for a value with which the engine could not run, or would wait for
        ever."""
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not lowest <= value < math.inf:
                raise ConfigError(f"option {name} is {value!r}: it takes a number from {lowest} on")
            if name != "stream_interval_ms" and not isinstance(value, int):
                raise ConfigError(f"option {name} is {value!r}: it takes a whole number")

    @classmethod
    def from_parameters(cls, parameters: Parameters) -> ExecutorOptions:
        """TensorRT-LLM's own parameters, then `executor_options`: a JSON object of any fields.

        Raises ConfigError, which names the parameter.
        """
        if parameters.number("max_beam_width", 1) != 1:
            raise ConfigError("parameter max_beam_width must be 1: beam search is not supported")
        chosen: dict[str, Any] = {
            "kv_cache_tokens": parameters.number(
                "max_tokens_in_paged_kv_cache", cls().kv_cache_tokens
            ),
            "is_prefix_reused": parameters.flag("enable_kv_cache_reuse", True),
        }
        return cls(**chosen | _named_fields(parameters.text("executor_options")))


class Parameters:
    """The `parameters` of a Triton model's config.pbtxt: strings, empty for the default."""

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = values

    def text(self, name: str) -> str:
        return self._values.get(name, "").strip()

    def flag(self, name: str, default: bool = False) -> bool:
        """Raises ConfigError."""
        value = self.text(name).lower()
        if value not in ("", "true", "1", "false", "0"):
            raise ConfigError(f"parameter {name} is {value!r}: it takes true or false")
        return value in ("true", "1") if value else default

    def number(self, name: str, default: int) -> int:
        """Raises ConfigError."""
        value = self.text(name)
        if value and not (value.isdecimal() and int(value) > 0):
            raise ConfigError(f"parameter {name} is {value!r}: it takes a whole number above 0")
        return int(value) if value else default


def _named_fields(text: str) -> dict[str, Any]:
    """The fields of ExecutorOptions in this JSON object. Raises ConfigError."""
    try:
        found = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"parameter executor_options is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError("parameter executor_options must be a JSON object")
    known = {field.name for field in fields(ExecutorOptions)}
    if unknown := sorted(found.keys() - known):
        raise ConfigError(
            f"parameter executor_options has unknown options: {', '.join(unknown)}; known: "
            f"{', '.join(sorted(known))}"
        )
    return found
