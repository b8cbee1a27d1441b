"""The admission queue as Triton's metrics."""

from __future__ import annotations

from compllm.assembly import RuntimeStats
from compllm.frontends.triton.comp_llm_metrics import (
    FAMILIES,
    LOAD,
    QUERIES,
    QUEUE,
    SHARED,
    values,
)
from compllm.scheduling.admission import EngineLoad
from compllm.scheduling.query_admission import QueryLoad
from compllm.scheduling.single_flight import SharingStats

ENGINE_LOAD = EngineLoad(
    limit=64,
    num_in_flight=64,
    num_waiting=5,
    num_admitted=100,
    num_waited=30,
    num_refused=2,
    total_wait_s=1.5,
    max_wait_s=0.5,
)


def test_each_engine_tells_what_waits_in_front_of_it() -> None:
    stats = RuntimeStats(
        {"tensorrt_llm": ENGINE_LOAD},
        SharingStats(num_flights=9, num_joined=4, num_cache_hits=2),
        QueryLoad(limit=32, num_running=3, num_waiting=1, num_refused=4),
        num_fallbacks=0,
    )
    told = {(family, labels): value for family, labels, value in values(3, stats)}
    engine = ("engine", "tensorrt_llm")
    assert told == {
        ("compllm_live_queries", ()): 3,
        (QUEUE, (engine, ("state", "in_flight"))): 64,
        (QUEUE, (engine, ("state", "limit"))): 64,
        (QUEUE, (engine, ("state", "waiting"))): 5,
        (LOAD, (engine,)): 69 / 64,
        ("compllm_queue_admitted_total", (engine,)): 100,
        ("compllm_queue_refused_total", (engine,)): 2,
        ("compllm_queue_wait_seconds_total", (engine,)): 1.5,
        (QUERIES, (("state", "running"),)): 3,
        (QUERIES, (("state", "limit"),)): 32,
        (QUERIES, (("state", "waiting"),)): 1,
        ("compllm_queries_refused_total", ()): 4,
        (SHARED, (("source", "in_flight"),)): 4,
        (SHARED, (("source", "cache"),)): 2,
    }
    assert {family for family, _ in told} == set(FAMILIES)
