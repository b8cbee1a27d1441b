"""Requests of the executor's tests and the settings of their engine."""

from __future__ import annotations

from compllm.embedded.executor import Executor
from compllm.embedded.options import ExecutorOptions
from compllm.embedded.request import EngineRequest

NUM_TOKENS = 12
ADAPTERS = {
    "narrow": {"rank": 2, "modules": ("q_proj", "v_proj"), "seed": 1},
    "wide": {"rank": 16, "modules": ("gate_proj", "up_proj", "down_proj", "o_proj"), "seed": 2},
    "odd": {"rank": 5, "modules": ("k_proj", "down_proj", "up_proj"), "seed": 3},
}
OPTIONS = ExecutorOptions(
    kv_cache_tokens=4096, max_num_tokens=48, max_adapters=4, stream_interval_ms=0
)


def ask(
    engine: Executor, prompt: tuple[int, ...], adapter: str = "", num_tokens: int = NUM_TOKENS
) -> EngineRequest:
    return EngineRequest(
        prompt, num_tokens, task_id=engine.adapter_names[adapter] if adapter else None
    )
