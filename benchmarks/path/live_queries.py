"""What a node's end costs among thousands of live queries: the part `admission` of bench_scheduler.

The C++ queue with the graphs of all the queries first, then its asyncio face beside a semaphore.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import random
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from benchmarks.path.workloads import random_dag
from benchmarks.report import Report, percentiles

if TYPE_CHECKING:
    from compllm._core import QueryGraph

QUEUE_TABLE = "admission: us per node event (done, enter, release)"

BLOCK = 100  # node events between two looks at the CPU clock


class LiveQueries:
    """Thousands of queries that take turns on two engines; who ends is replaced by a new query."""

    LIMITS = (64, 64)
    NODES = 8

    def __init__(self, policy: str, num_queries: int, rng: random.Random) -> None:
        from compllm import _core

        self._core, self._rng = _core, rng
        self.queue = _core.AdmissionQueue(
            self.LIMITS, _core.Policy[policy], num_queries * self.NODES
        )
        self.shapes = [random_dag(self.NODES, rng) for _ in range(256)]
        self.num_started = self.num_finished = 0
        # What a request of the queue means, by ticket; one lookup as in admission.py.
        self.waiting: dict[int, tuple[int, QueryGraph, int]] = {}
        self.running: list[tuple[int, QueryGraph, int, int]] = []
        for _ in range(num_queries):
            self.start_query()

    def start_query(self) -> None:
        graph = self._core.QueryGraph(self.NODES, self.NODES)
        for node, parents in enumerate(self._rng.choice(self.shapes)):
            graph.add_node(node, parents, 1.0 + node % 3)
        self.enter(self.num_started, graph, graph.ready())
        self.num_started += 1

    def enter(self, seq: int, graph: QueryGraph, ready: list[int]) -> None:
        for node in ready:
            engine = (seq + node) & 1
            path, work = graph.remaining_path(node), graph.remaining_work
            ticket = self.queue.enter(seq, node, path, work, engine)
            if ticket is None:
                self.running.append((seq, graph, node, engine))
            else:
                self.waiting[ticket] = (seq, graph, node)

    def choose(self) -> tuple[int, QueryGraph, int, int]:
        running = self.running
        position = int(self._rng.random() * len(running))
        running[position], running[-1] = running[-1], running[position]
        return running.pop()

    def end_one(self) -> float:
        """A random running node ends: microseconds until the engine's next request is known."""
        seq, graph, node, engine = self.choose()
        started = time.perf_counter_ns()
        self.enter(seq, graph, graph.done(node))
        ticket = self.queue.release(engine)
        if ticket is not None:
            self.running.append((*self.waiting.pop(ticket), engine))
        ended = time.perf_counter_ns()
        self.num_finished += graph.is_finished
        return (ended - started) / 1e3

    def end_none(self) -> float:
        """All that `end_one` does beside the event, so that its CPU time can be taken off."""
        chosen = self.choose()
        started = time.perf_counter_ns()
        ended = time.perf_counter_ns()
        self.running.append(chosen)
        self.num_finished += chosen[1].is_finished
        return (ended - started) / 1e3

    def refill(self) -> None:
        while self.num_finished > 0:
            self.start_query()
            self.num_finished -= 1


def bench_queue(report: Report, arguments: argparse.Namespace) -> None:
    num_queries, num_events = (200, 2_000) if arguments.quick else (10_000, 300_000)
    for policy in ("oldest_query_first", "fifo", "deepest_first", "least_remaining_work"):
        live = LiveQueries(policy, num_queries, random.Random(arguments.seed))
        measured: list[float] = []
        cpu_us = driver_us = 0.0  # unlike the clock they do not count who else computes
        for block in range(num_events // BLOCK * 5 // 4):
            started = time.thread_time_ns()
            times = [live.end_one() for _ in range(BLOCK)]
            between = time.thread_time_ns()
            for _ in range(BLOCK):
                live.end_none()
            ended = time.thread_time_ns()
            live.refill()
            if block >= num_events // BLOCK // 4:  # the first fifth warms up
                measured += times
                cpu_us += (between - started) / 1e3
                driver_us += (ended - between) / 1e3
        report.add(
            QUEUE_TABLE,
            policy=policy,
            live_queries=num_queries,
            waiting=sum(map(live.queue.num_waiting, range(len(live.LIMITS)))),
            events=len(measured),
            mean_us=round(statistics.fmean(measured), 3),
            mean_cpu_us=round((cpu_us - driver_us) / len(measured), 3),
            driver_cpu_us=round(driver_us / len(measured), 3),
            **{f"{name}_us": round(value, 3) for name, value in percentiles(measured).items()},
        )
    rows = report.tables[QUEUE_TABLE]
    report.summary["node_event_us_at_live_queries"] = {
        "live_queries": num_queries,
        "mean_us": rows[0]["mean_us"],
        "mean_cpu_us": rows[0]["mean_cpu_us"],
        "p50_us": rows[0]["p50_us"],
        "p99_us": rows[0]["p99_us"],
        "target_us": 5.0,
    }


Enter = Callable[[int], AbstractAsyncContextManager[object]]  # by the number of the query


async def time_slots(enter: Enter, num_requests: int, num_turns: int) -> float:
    """Microseconds per request, its task counted, when all come at once."""

    async def request(query: int) -> None:
        async with enter(query):
            for _ in range(num_turns):
                await asyncio.sleep(0)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for query in range(num_requests):
            tasks.create_task(request(query))
    return (time.perf_counter() - started) / num_requests * 1e6


def bench_slots(report: Report, arguments: argparse.Namespace) -> None:
    """Slots beside asyncio's own semaphore, which keeps no order but that of arrival."""
    from compllm.scheduling.admission import Admission

    num_requests, num_rounds = (500, 2) if arguments.quick else (10_000, 15)
    for case, limit, num_turns in (("all enter at once", num_requests, 0), ("one by one", 1, 1)):
        times: dict[str, list[float]] = {"Admission": [], "asyncio.Semaphore": [], "nothing": []}
        for _ in range(num_rounds):
            admission = Admission({"base": limit}, max_waiting=num_requests)
            semaphore = asyncio.Semaphore(limit)
            faces: dict[str, Enter] = {
                "Admission": lambda query, admission=admission: admission.slot(  # type: ignore[misc]
                    "base", query, 1, 1.0
                ),
                "asyncio.Semaphore": lambda _, semaphore=semaphore: semaphore,  # type: ignore[misc]
                "nothing": lambda _: contextlib.nullcontext(),
            }
            for name, enter in faces.items():
                gc.collect()
                times[name].append(asyncio.run(time_slots(enter, num_requests, num_turns)))
        for name, measured in times.items():
            report.add(
                "admission.py: us per request under asyncio, its task counted",
                case=case,
                face=name,
                requests=num_requests,
                median_us=round(statistics.median(measured), 3),
                rounds=num_rounds,
            )


def bench(report: Report, arguments: argparse.Namespace) -> None:
    bench_queue(report, arguments)
    bench_slots(report, arguments)
