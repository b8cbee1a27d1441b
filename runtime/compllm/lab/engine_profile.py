"""How long an engine's steps and the host's ways take: what the simulator knows of a machine.

A profile is a JSON file: fitted from measurements (`fit.py`), written by hand, or the built-in
hypothetical one.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from compllm import _core
from compllm.errors import ConfigError

_MOST = 65_536  # sequences or tokens in a step


@dataclass(frozen=True, slots=True)
class HostTimes:
    """Milliseconds on the way between two steps of one query."""

    to_engine_ms: float = 0.0  # from the admission of a request to the engine's queue
    from_engine_ms: float = 0.0  # from the step that made it to the request that waits for it
    handover_ms: float = 0.0  # from the last parent's end to the child's request
    route_ms: float = 0.0  # from the end of a plan's line to its node


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """A batched engine and the host before it."""

    name: str
    # (sequences that decode in a step, its ms), rising in sequences; between two the time is
    # interpolated, beyond the last two it goes on as between them. That of 0 sequences is what a
    # step of prefill takes beside its tokens.
    step_ms: tuple[tuple[int, float], ...]
    prefill_ms_per_token: float
    max_batch_size: int = 32
    max_num_tokens: int = 256  # of a step
    context_ms_per_token: float = 0.0  # of what decoding sequences look back on
    mixed_ms: float = 0.0  # more, where a step holds decodes and prefill
    tokens_per_block: int = 32  # of the prefix cache; 0: nothing is reused
    host: HostTimes = field(default_factory=HostTimes)
    is_hypothetical: bool = False  # it was not measured
    note: str = ""

    def __post_init__(self) -> None:
        sizes = [size for size, _ in self.step_ms]
        if len(sizes) < 2 or sizes[0] != 0 or sizes != sorted(set(sizes)):
            raise ConfigError(
                f"profile {self.name!r}: step_ms has the batch sizes {sizes}: at least two are "
                "needed, rising from 0"
            )
        if not 1 <= self.max_batch_size <= _MOST or not 1 <= self.max_num_tokens <= _MOST:
            raise ConfigError(
                f"profile {self.name!r}: max_batch_size is {self.max_batch_size}, max_num_tokens "
                f"{self.max_num_tokens}: both lie between 1 and {_MOST}"
            )
        times = {
            **{f"step_ms of {size}": ms for size, ms in self.step_ms},
            "prefill_ms_per_token": self.prefill_ms_per_token,
            "context_ms_per_token": self.context_ms_per_token,
            "mixed_ms": self.mixed_ms,
            "tokens_per_block": self.tokens_per_block,
            **asdict(self.host),
        }
        for name, value in times.items():
            if not math.isfinite(value) or value < 0:
                raise ConfigError(
                    f"profile {self.name!r}: {name} is {value}: it must be finite and not negative"
                )

    def step_time_ms(self, num_sequences: int) -> float:
        """Of a step that decodes `num_sequences` sequences and prefills none."""
        points = self.step_ms
        after = next((i for i, (size, _) in enumerate(points) if size >= num_sequences), -1)
        after = max(after % len(points), 1)
        (low, low_ms), (high, high_ms) = points[after - 1], points[after]
        slope = (high_ms - low_ms) / (high - low)
        if num_sequences > high:  # a noisy measurement must not end in steps of no time
            return high_ms + max(0.0, slope) * (num_sequences - high)
        return low_ms + slope * (num_sequences - low)

    def engine_model(self) -> _core.EngineModel:
        """For the simulator. Raises ConfigError for a step that would take no time."""
        try:
            return _core.EngineModel(
                [self.step_time_ms(size) for size in range(self.max_batch_size + 1)],
                self.prefill_ms_per_token,
                self.max_num_tokens,
                self.context_ms_per_token,
                self.mixed_ms,
            )
        except ValueError as error:
            raise ConfigError(f"profile {self.name!r}: {error}") from error

    def host_model(self) -> _core.HostModel:
        return _core.HostModel(**asdict(self.host))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"


# Batch 1 to 8 cost alike, as where reading the weights is all a step does; tokens of a prompt are
# computed a hundred times faster than read one by one. The numbers stand for no product.
GPU_LIKE = EngineProfile(
    name="gpu-like",
    step_ms=((0, 8.0), (1, 8.0), (8, 8.0), (32, 10.0), (64, 13.0)),
    prefill_ms_per_token=0.02,
    max_batch_size=64,
    max_num_tokens=2048,
    host=HostTimes(to_engine_ms=0.3, from_engine_ms=0.3, handover_ms=0.2, route_ms=5.0),
    is_hypothetical=True,
    note="hypothetical: an engine whose step takes as long for 8 sequences as for 1; nobody "
    "measured it",
)
BUILT_IN = {GPU_LIKE.name: GPU_LIKE}


def load_profile(name: str) -> EngineProfile:
    """A built-in profile by its name, else a file. Raises ConfigError."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    path = Path(name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read the engine profile {name}: {error.strerror}; name a file (`compllm "
            f"simulate --fit` makes one) or one of {', '.join(BUILT_IN)}"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{name} is not JSON: {error}") from error
    return _parse(name, values)


def _parse(origin: str, values: Any) -> EngineProfile:
    known = {each.name for each in fields(EngineProfile)}
    if not isinstance(values, dict) or not set(values) <= known:
        unknown = sorted(set(values) - known) if isinstance(values, dict) else values
        raise ConfigError(f"{origin}: {unknown!r} is no part of a profile: {sorted(known)} are")
    try:
        host = HostTimes(**{key: float(ms) for key, ms in values.pop("host", {}).items()})
        steps = tuple((int(size), float(ms)) for size, ms in values.pop("step_ms"))
        return EngineProfile(**values, step_ms=steps, host=host)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"{origin} is not an engine profile: {error!r}") from error
