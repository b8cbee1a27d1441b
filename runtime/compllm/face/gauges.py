"""The admission queue in front of the engines as Triton's metrics: what a fleet is scaled by.

The runtime lets a bounded number of requests into an engine, so that the engine's own gauges cannot
tell how many wait. `serving.py` hands in snapshots of `Admission.loads`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from compllm.admission import EngineLoad
from compllm.gauges import COUNTER, GAUGE, MakeMetric, Publisher, Value

QUEUE = "compllm_queue_requests"
FAMILIES = {
    "compllm_live_queries": (GAUGE, "Queries that are not answered to their end"),
    QUEUE: (GAUGE, "Requests of these queries: at the engine, allowed there, waiting for it"),
    "compllm_queue_admitted_total": (COUNTER, "Requests that were let into the engine"),
    "compllm_queue_refused_total": (COUNTER, "Requests that found the queue full"),
    "compllm_queue_wait_seconds_total": (COUNTER, "Seconds that requests waited"),
}


def values(num_queries: int, loads: Mapping[str, EngineLoad]) -> Iterator[Value]:
    """`loads`: by engine, the name of its Triton model."""
    yield "compllm_live_queries", (), num_queries
    for name, load in loads.items():
        engine = ("engine", name)
        states = {
            "in_flight": load.num_in_flight,
            "limit": load.limit,
            "waiting": load.num_waiting,
        }
        for state, value in states.items():
            yield QUEUE, (engine, ("state", state)), value
        yield "compllm_queue_admitted_total", (engine,), load.num_admitted
        yield "compllm_queue_refused_total", (engine,), load.num_refused
        yield "compllm_queue_wait_seconds_total", (engine,), load.total_wait_s


class QueueGauges:
    """Publishes the loads of one `comp_llm` model."""

    def __init__(self, make_metric: MakeMetric, labels: Mapping[str, str]) -> None:
        self._publisher = Publisher(make_metric, FAMILIES, labels)

    def publish(self, num_queries: int, loads: Mapping[str, EngineLoad]) -> None:
        self._publisher.publish(values(num_queries, loads))
