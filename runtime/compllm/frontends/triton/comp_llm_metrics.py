"""The runtime's counters as Triton's metrics, first the queue that a fleet is scaled by.

The runtime lets a bounded number of requests into an engine, so that the engine's own gauges cannot
show how many wait. `comp_llm_serving.py` hands in snapshots of `CompLLM.stats`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from compllm.assembly import RuntimeStats
from compllm.frontends.triton.metrics import COUNTER, GAUGE, MakeMetric, Publisher, Value

QUERIES = "compllm_queries"
QUEUE, LOAD = "compllm_queue_requests", "compllm_queue_load"
SHARED = "compllm_shared_nodes_total"
FAMILIES = {
    "compllm_live_queries": (GAUGE, "Queries that are not answered to their end"),
    QUERIES: (GAUGE, "Queries: running, allowed to run at once, waiting for their turn"),
    "compllm_queries_refused_total": (COUNTER, "Queries that would have ended too late"),
    QUEUE: (GAUGE, "Requests of these queries: at the engine, allowed there, waiting for it"),
    LOAD: (
        GAUGE,
        "Requests at the engine and waiting for it, over the limit",
    ),
    "compllm_queue_admitted_total": (COUNTER, "Requests that were let into the engine"),
    "compllm_queue_refused_total": (COUNTER, "Requests that found the queue full"),
    "compllm_queue_wait_seconds_total": (COUNTER, "Seconds that requests waited"),
    SHARED: (COUNTER, "Sub-queries answered by another's request, under way or kept"),
}


def values(num_queries: int, stats: RuntimeStats | None) -> Iterator[Value]:
    """Live queries, and what the runtime counts; None: it is not connected to its engine."""
    yield "compllm_live_queries", (), num_queries
    if stats is None:
        return
    for name, load in stats.engines.items():
        engine = ("engine", name)
        states = {
            "in_flight": load.num_in_flight,
            "limit": load.limit,
            "waiting": load.num_waiting,
        }
        for state, value in states.items():
            yield QUEUE, (engine, ("state", state)), value
        yield LOAD, (engine,), (load.num_in_flight + load.num_waiting) / load.limit
        yield "compllm_queue_admitted_total", (engine,), load.num_admitted
        yield "compllm_queue_refused_total", (engine,), load.num_refused
        yield "compllm_queue_wait_seconds_total", (engine,), load.total_wait_s
    queries = stats.queries
    yield QUERIES, (("state", "running"),), queries.num_running
    yield QUERIES, (("state", "limit"),), queries.limit
    yield QUERIES, (("state", "waiting"),), queries.num_waiting
    yield "compllm_queries_refused_total", (), queries.num_refused
    sharing = stats.sharing
    yield SHARED, (("source", "in_flight"),), sharing.num_joined
    yield SHARED, (("source", "cache"),), sharing.num_cache_hits


class QueueGauges:
    """Publishes the counters of one `comp_llm` model."""

    def __init__(self, make_metric: MakeMetric, labels: Mapping[str, str]) -> None:
        self._publisher = Publisher(make_metric, FAMILIES, labels)

    def publish(self, num_queries: int, stats: RuntimeStats | None) -> None:
        self._publisher.publish(values(num_queries, stats))
