"""What the engine and the client counted during a replay: Triton's metrics before and behind it."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from compllm.errors import BackendUnavailable
from compllm.replay.runner import ReplayLLM

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
_TIMEOUT_S = 10.0

Samples = Mapping[tuple[str, str], float]


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
    }


def client_counters(llm: ReplayLLM) -> dict[str, Any]:
    """Of the runtime: admission, sharing, prewarm."""
    return asdict(llm.stats())


def _grown(before: Samples, behind: Samples, key: tuple[str, str]) -> int | None:
    return int(behind[key] - before.get(key, 0.0)) if key in behind else None
