"""The admission queue as Triton's metrics."""

from __future__ import annotations

from compllm.admission import EngineLoad
from compllm.face.gauges import FAMILIES, QUEUE, values

LOAD = EngineLoad(
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
    told = {(family, labels): value for family, labels, value in values(3, {"tensorrt_llm": LOAD})}
    engine = ("engine", "tensorrt_llm")
    assert told == {
        ("compllm_live_queries", ()): 3,
        (QUEUE, (engine, ("state", "in_flight"))): 64,
        (QUEUE, (engine, ("state", "limit"))): 64,
        (QUEUE, (engine, ("state", "waiting"))): 5,
        ("compllm_queue_admitted_total", (engine,)): 100,
        ("compllm_queue_refused_total", (engine,)): 2,
        ("compllm_queue_wait_seconds_total", (engine,)): 1.5,
    }
    assert {family for family, _ in told} == set(FAMILIES)
