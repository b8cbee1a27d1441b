"""What the engine and the client counted during a replay: Triton's metrics before and after it."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from compllm.errors import BackendUnavailable
from compllm.lab.replay.runner import ReplayLLM

_SAMPLE = re.compile(r"^(\w+)(?:\{(.*?)\})? (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="(.*?)"')
# Short name -> metric and, where it has several samples, the label's value that is meant.
_COUNTED = {
    "num_steps": ("nv_trt_llm_general_metrics", "iteration_counter"),
    "num_mixed_steps": ("compllm_mixed_steps_total", ""),
    "num_generated_tokens": ("compllm_generated_tokens_total", ""),
    "kv_reused_blocks": ("nv_trt_llm_kv_cache_block_metrics", "reused"),
    "lora_loads": ("compllm_lora_loads_total", ""),
}
_STEPS = "compllm_engine_steps_total"
_TIMED_STEPS = "compllm_timed_steps_total"
_SECONDS = "compllm_step_seconds_total"
_PREFILLED = "compllm_prefill_tokens_total"
_TIMEOUT_S = 10.0

Samples = Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class TimedSteps:
    """Steps of one kind between two readings of the metrics."""

    num_decodes: int  # sequences that decoded in the step
    has_prefill: bool
    num_steps: int
    total_ms: float
    num_prefilled: int  # tokens


@dataclass(frozen=True, slots=True)
class Window:
    """A few seconds of a replay, from the window before on."""

    end_ms: float  # from the start of the replay
    steps: tuple[TimedSteps, ...]


def read_samples(url: str) -> Samples:
    """Triton's metrics by name and the value of the label that is not the model's. Raises
    BackendUnavailable."""
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            text = answer.read().decode()
    except OSError as error:
        raise BackendUnavailable(f"no metrics at {url}: {error}") from error
    found: dict[tuple[str, str], float] = {}
    for name, labels, value in _SAMPLE.findall(text):
        own = [given for key, given in _LABEL.findall(labels) if key not in ("model", "version")]
        found[name, ",".join(own)] = float(value)
    return found


def engine_counters(before: Samples, behind: Samples) -> dict[str, Any]:
    """What was counted between the two; steps also by requests in the step."""
    sizes = sorted(int(size) for name, size in behind if name == _STEPS and size.isdigit())
    steps = {str(size): _grown(before, behind, (_STEPS, str(size))) for size in sizes}
    return {
        **{name: _grown(before, behind, key) for name, key in _COUNTED.items()},
        "steps_by_batch_size": {size: count for size, count in steps.items() if count},
        "step_times": [asdict(each) for each in timed_steps(before, behind)],
    }


def timed_steps(before: Samples, behind: Samples) -> tuple[TimedSteps, ...]:
    """What the engine's steps took between the two, by kind; empty where it reports none."""
    found = []
    for name, kind in behind:
        if name != _TIMED_STEPS:
            continue
        num_decodes, _, has_prefill = kind.partition(",")
        num_steps = _grown(before, behind, (name, kind)) or 0
        seconds = behind[_SECONDS, kind] - before.get((_SECONDS, kind), 0.0)
        num_tokens = _grown(before, behind, (_PREFILLED, kind)) or 0
        if num_steps:
            each = TimedSteps(
                int(num_decodes), has_prefill == "yes", num_steps, 1e3 * seconds, num_tokens
            )
            found.append(each)
    return tuple(sorted(found, key=lambda each: (each.has_prefill, each.num_decodes)))


def windows_of(readings: Sequence[tuple[float, Samples]]) -> tuple[Window, ...]:
    """Between one reading, (ms from the start of the replay, the metrics), and the next."""
    return tuple(
        Window(end_ms, timed_steps(before, behind))
        for (_, before), (end_ms, behind) in pairwise(readings)
    )


def client_counters(llm: ReplayLLM) -> dict[str, Any]:
    """Of the runtime: admission, sharing."""
    return asdict(llm.stats())


def _grown(before: Samples, behind: Samples, key: tuple[str, str]) -> int | None:
    return int(behind[key] - before.get(key, 0.0)) if key in behind else None
