"""The engine's counters as Triton's metrics."""

from __future__ import annotations

from collections.abc import Mapping

from compllm.embedded.request import EngineStats, StepTimes
from compllm.embedded.slots import SlotStats
from compllm.frontends.triton.core_metrics import FAMILIES, Gauges


class FakeMetric:
    def __init__(self) -> None:
        self.value = 0.0
        self.num_changes = 0

    def set(self, value: float) -> None:
        self.value = value
        self.num_changes += 1

    def increment(self, value: float) -> None:
        self.set(self.value + value)


class FakeFamilies:
    def __init__(self) -> None:
        self.metrics: dict[tuple[str, str], FakeMetric] = {}

    def __call__(self, family: str, labels: Mapping[str, str]) -> FakeMetric:
        assert family in FAMILIES
        assert labels["model"] == "tensorrt_llm"
        own = [value for name, value in labels.items() if name != "model"]
        metric = self.metrics[family, ",".join(own)] = FakeMetric()
        return metric


def _published(*snapshots: EngineStats) -> dict[tuple[str, str], FakeMetric]:
    families = FakeFamilies()
    gauges = Gauges(families, {"model": "tensorrt_llm"}, max_batch_size=32)
    for stats in snapshots:
        gauges.publish(stats)
    return families.metrics


def test_gauges_have_the_names_of_tensorrt_llm() -> None:
    stats = EngineStats(
        num_active=3, num_waiting=2, kv_blocks_max=10, kv_blocks_used=4, kv_tokens_per_block=32
    )
    metrics = {key: metric.value for key, metric in _published(stats).items()}
    assert metrics["nv_trt_llm_request_metrics", "active"] == 3
    assert metrics["nv_trt_llm_request_metrics", "waiting"] == 2
    assert metrics["nv_trt_llm_request_metrics", "max"] == 32
    assert metrics["nv_trt_llm_kv_cache_block_metrics", "free"] == 6
    assert metrics["nv_trt_llm_kv_cache_block_metrics", "fraction"] == 0.4
    assert metrics["nv_trt_llm_kv_cache_block_metrics", "tokens_per"] == 32


def test_counters_rise_to_the_totals() -> None:
    metrics = _published(
        EngineStats(num_mixed_steps=2, batch_histogram=((4, 5),)),
        EngineStats(num_mixed_steps=7, batch_histogram=((4, 6), (8, 1))),
    )
    assert metrics["compllm_mixed_steps_total", ""].value == 7
    assert metrics["compllm_engine_steps_total", "4"].value == 6
    assert metrics["compllm_engine_steps_total", "8"].value == 1


def test_step_times_are_told_by_kind_of_step() -> None:
    decoding, mixed = StepTimes(2, False, 5, 0.05, 0), StepTimes(1, True, 3, 0.4, 90)
    metrics = _published(EngineStats(step_times=(mixed, decoding)))
    found = {key: metric.value for key, metric in metrics.items() if "step" in key[0]}
    assert found["compllm_timed_steps_total", "2,no"] == 5
    assert found["compllm_step_seconds_total", "1,yes"] == 0.4
    assert metrics["compllm_prefill_tokens_total", "1,yes"].value == 90
    assert ("compllm_prefill_tokens_total", "2,no") not in metrics


def test_what_did_not_change_is_not_sent_again() -> None:
    metrics = _published(EngineStats(num_active=1), EngineStats(num_active=1))
    assert {metric.num_changes for metric in metrics.values()} == {1}


def test_adapter_slots_are_told() -> None:
    stats = EngineStats(adapters=SlotStats(2, 1, 5, 3, 4, 6), max_steps_to_cancel=1)
    metrics = {key: metric.value for key, metric in _published(stats).items()}
    assert metrics["compllm_lora_slots", "max"] == 2
    assert metrics["compllm_lora_slots", "used"] == 1
    assert metrics["compllm_lora_loads_total", ""] == 5
    assert metrics["compllm_lora_evictions_total", ""] == 3
    assert metrics["compllm_lora_misses_total", ""] == 4
    assert metrics["compllm_lora_refusals_total", ""] == 6
    assert metrics["compllm_max_steps_to_cancel", ""] == 1
