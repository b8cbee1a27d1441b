"""The engine's counters under the names that TensorRT-LLM's Triton backend gives them, and our own.

Only what this engine counts is here. `core_serving.py` hands in snapshots, the Triton
model families.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from compllm.embedded.request import EngineStats
from compllm.frontends.triton.metrics import COUNTER, GAUGE, MakeMetric, Publisher, Value

FAMILIES = {
    "nv_trt_llm_request_metrics": (GAUGE, "TRT LLM request metrics"),
    "nv_trt_llm_kv_cache_block_metrics": (GAUGE, "TRT LLM KV cache block metrics"),
    "nv_trt_llm_inflight_batcher_metrics": (GAUGE, "TRT LLM inflight_batcher-specific metrics"),
    "nv_trt_llm_general_metrics": (GAUGE, "General TRT LLM metrics"),
    "compllm_engine_steps_total": (COUNTER, "Steps of the engine, by requests in the step"),
    "compllm_timed_steps_total": (
        COUNTER,
        "Steps, by sequences that decode in the step and whether it has prefill beside",
    ),
    "compllm_step_seconds_total": (COUNTER, "Time that those steps took"),
    "compllm_prefill_tokens_total": (COUNTER, "Tokens of prompts that those steps computed"),
    "compllm_mixed_steps_total": (COUNTER, "Steps with two or more different adapters"),
    "compllm_generated_tokens_total": (COUNTER, "Tokens generated"),
    "compllm_max_adapters_in_step": (GAUGE, "Most different adapters that one step had"),
    "compllm_lora_slots": (GAUGE, "Places for adapters: all of them, and those taken"),
    "compllm_lora_loads_total": (COUNTER, "Adapters put into a slot"),
    "compllm_lora_evictions_total": (COUNTER, "Idle adapters that made room for another"),
    "compllm_lora_misses_total": (COUNTER, "Requests for an adapter that was not there"),
    "compllm_lora_refusals_total": (COUNTER, "Adapters refused since every slot was in use"),
    "compllm_engine_ready": (GAUGE, "1 while the engine takes requests, 0 when it is dead"),
    "compllm_engine_failures_total": (COUNTER, "Steps that failed, after which it started anew"),
    "compllm_max_steps_to_cancel": (GAUGE, "Most steps between a cancel and its request's end"),
}


def values(stats: EngineStats, max_batch_size: int) -> Iterator[Value]:
    """Family, labels, value. Counters as totals."""
    yield from _upstream_values(stats, max_batch_size)
    yield from _own_values(stats)


def _group(family: str, label: str, each: Mapping[str, float]) -> Iterator[Value]:
    return ((family, ((label, name),), value) for name, value in each.items())


def _upstream_values(stats: EngineStats, max_batch_size: int) -> Iterator[Value]:
    """The families that TensorRT-LLM's backend has."""
    yield from _group(
        "nv_trt_llm_request_metrics",
        "request_type",
        {
            "active": stats.num_active,
            "max": max_batch_size,
            "scheduled": stats.num_active,  # every admitted request is in every step
            "waiting": stats.num_waiting,
        },
    )
    yield from _group(
        "nv_trt_llm_kv_cache_block_metrics",
        "kv_cache_block_type",
        {
            "max": stats.kv_blocks_max,
            "free": stats.kv_blocks_max - stats.kv_blocks_used,
            "used": stats.kv_blocks_used,
            "tokens_per": stats.kv_tokens_per_block,
            "reused": stats.kv_blocks_reused,
            "fraction": stats.kv_blocks_used / max(1, stats.kv_blocks_max),
        },
    )
    yield from _group(
        "nv_trt_llm_inflight_batcher_metrics",
        "inflight_batcher_specific_metric",
        {"micro_batch_id": 0, "paused_requests": 0},  # one batch, and nothing is ever preempted
    )
    yield from _group(
        "nv_trt_llm_general_metrics", "general_type", {"iteration_counter": stats.num_steps}
    )


def _own_values(stats: EngineStats) -> Iterator[Value]:
    """The families of this engine alone."""
    for size, count in stats.batch_histogram:
        yield "compllm_engine_steps_total", (("batch_size", str(size)),), count
    for each in stats.step_times:
        kind = (
            ("decoding", str(each.num_decodes)),
            ("prefill", "yes" if each.has_prefill else "no"),
        )
        yield "compllm_timed_steps_total", kind, each.num_steps
        yield "compllm_step_seconds_total", kind, each.seconds
        if each.has_prefill:
            yield "compllm_prefill_tokens_total", kind, each.num_prefilled
    yield "compllm_mixed_steps_total", (), stats.num_mixed_steps
    yield "compllm_generated_tokens_total", (), stats.num_tokens_generated
    yield "compllm_max_adapters_in_step", (), stats.max_adapters_in_step
    slots = stats.adapters
    yield from _group(
        "compllm_lora_slots", "type", {"max": slots.num_slots, "used": slots.num_loaded}
    )
    yield "compllm_lora_loads_total", (), slots.num_loads
    yield "compllm_lora_evictions_total", (), slots.num_evictions
    yield "compllm_lora_misses_total", (), slots.num_misses
    yield "compllm_lora_refusals_total", (), slots.num_refusals
    yield "compllm_engine_ready", (), int(stats.failure is None)
    yield "compllm_engine_failures_total", (), stats.num_failures
    yield "compllm_max_steps_to_cancel", (), stats.max_steps_to_cancel


class Gauges:
    """Publishes the engine's counters."""

    def __init__(
        self, make_metric: MakeMetric, labels: Mapping[str, str], max_batch_size: int
    ) -> None:
        """`labels`: those that every metric carries."""
        self._publisher = Publisher(make_metric, FAMILIES, labels)
        self._max_batch_size = max_batch_size

    def publish(self, stats: EngineStats) -> None:
        self._publisher.publish(values(stats, self._max_batch_size))
