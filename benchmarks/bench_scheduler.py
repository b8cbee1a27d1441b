"""What scheduling costs: microseconds per node, of the C++ core beside what Python offers.

    python -m benchmarks.bench_scheduler [--part graph --part admission] [--quick]

graph: build a random DAG node by node and run it, one event per finished node, with the core, its
Python face, graphlib, networkx and rustworkx. admission: a node's end among thousands of live
queries: graph done, what became ready enters, release to the next. No engine is part of either.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import random
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from benchmarks.report import Report, Row, add_arguments, percentiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from compllm._core import QueryGraph

SIZES = (8, 64, 1_024, 16_384, 131_072, 1_000_000)
QUICK_SIZES = (8, 64, 1_024)

GRAPH_TABLE = "graph: us of CPU per node"
QUEUE_TABLE = "admission: us per node event (done, enter, release)"

BLOCK = 100  # node events between two looks at the CPU clock

Parents = list[tuple[int, ...]]  # by node id, rising from 0
Done = Callable[[int], Iterable[int]]  # ends a node; returns what became ready
Built = tuple[Iterable[int], Done]  # what is ready at the start, and how to end a node


def random_dag(num_nodes: int, rng: random.Random) -> Parents:
    """Each node depends on up to three earlier ones, drawn alike: 1.5 on average, some on none."""
    return [
        tuple(rng.sample(range(node), min(node, rng.randrange(4)))) for node in range(num_nodes)
    ]


# Each library in the way its users would take it, node by node as lines of a plan arrive.


def build_core(parents: Parents) -> Built:
    from compllm import _core

    graph = _core.QueryGraph(len(parents), len(parents))
    for node, above in enumerate(parents):
        graph.add_node(node, above)
    return graph.ready(), graph.done


def build_core_at_once(parents: Parents) -> Built:
    from compllm import _core

    num = len(parents)
    graph = _core.QueryGraph.build(range(num), parents, [1.0] * num, num, num)
    return graph.ready(), graph.done


def build_face(parents: Parents) -> Built:
    from compllm.graph import QueryGraph
    from compllm.types import SubQuery

    graph = QueryGraph(max_nodes=len(parents), max_depth=len(parents))
    for node, above in enumerate(parents):
        graph.add(SubQuery(node, "", above))
    return graph.ready, graph.done


def build_graphlib(parents: Parents) -> Built:
    import graphlib

    sorter: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter()
    for node, above in enumerate(parents):
        sorter.add(node, *above)
    sorter.prepare()

    def done(node: int) -> tuple[int, ...]:
        sorter.done(node)
        return sorter.get_ready()

    return sorter.get_ready(), done


def build_networkx(parents: Parents) -> Built:
    import networkx as nx

    graph = nx.DiGraph()
    for node, above in enumerate(parents):
        graph.add_node(node)
        graph.add_edges_from((parent, node) for parent in above)
    # networkx orders a whole graph at once; running one event by event is left to its user.
    num_pending = dict(graph.in_degree())

    def done(node: int) -> list[int]:
        ready = []
        for child in graph.successors(node):
            num_pending[child] -= 1
            if num_pending[child] == 0:
                ready.append(child)
        return ready

    return [node for node, num in num_pending.items() if num == 0], done


def build_rustworkx(parents: Parents) -> Built:
    import rustworkx as rx

    graph = rx.PyDiGraph()
    for node, above in enumerate(parents):
        graph.add_node(node)
        graph.add_edges_from_no_data([(parent, node) for parent in above])
    sorter = rx.TopologicalSorter(graph, True)

    def done(node: int) -> list[int]:
        sorter.done(node)
        ready: list[int] = sorter.get_ready()
        return ready

    return sorter.get_ready(), done


LIBRARIES: dict[str, Callable[[Parents], Built]] = {
    "_core": build_core,
    "_core, built at once": build_core_at_once,
    "compllm.graph": build_face,
    "graphlib": build_graphlib,
    "networkx": build_networkx,
    "rustworkx": build_rustworkx,
}


def run_to_the_end(built: Built) -> int:
    ready, done = built
    queue, num_done = deque(ready), 0
    while queue:
        queue.extend(done(queue.popleft()))
        num_done += 1
    return num_done


def time_once(
    build: Callable[[Parents], Built], parents: Parents, num_graphs: int
) -> tuple[float, float]:
    """Microseconds of CPU per node to build and to run so many graphs of one shape."""
    started = time.process_time()
    built = [build(parents) for _ in range(num_graphs)]
    between = time.process_time()
    num_done = sum(run_to_the_end(graph) for graph in built)
    ended = time.process_time()
    if num_done != len(parents) * num_graphs:
        raise RuntimeError(f"{num_done} of {len(parents) * num_graphs} nodes were done")
    return (between - started) / num_done * 1e6, (ended - between) / num_done * 1e6


def bench_graph(report: Report, arguments: argparse.Namespace) -> None:
    rng = random.Random(arguments.seed)
    for num_nodes in QUICK_SIZES if arguments.quick else SIZES:
        parents = random_dag(num_nodes, rng)
        num_graphs = max(1, 1_000 // num_nodes)
        num_rounds = 3 if arguments.quick else max(2, min(30, 300_000 // num_nodes))
        num_warm_ups = 1 if num_nodes < 100_000 else 0  # a large graph warms up by itself
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in LIBRARIES}
        # Libraries take turns, so that a slow moment of the machine hits all of them. The garbage
        # collector would bill one library for another's objects.
        for round_number in range(num_warm_ups + num_rounds):
            for name, build in LIBRARIES.items():
                gc.collect()
                gc.disable()
                measured = time_once(build, parents, num_graphs)
                gc.enable()
                if round_number >= num_warm_ups:
                    times[name].append(measured)
        for name, pairs in times.items():
            build_us, run_us = (statistics.median(column) for column in zip(*pairs, strict=True))
            report.add(
                GRAPH_TABLE,
                library=name,
                nodes=num_nodes,
                build_us=round(build_us, 3),
                event_us=round(run_us, 3),
                total_us=round(build_us + run_us, 3),
                rounds=num_rounds,
            )


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
            waiting=len(live.queue),
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
    from compllm.admission import Admission

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


def bench_admission(report: Report, arguments: argparse.Namespace) -> None:
    bench_queue(report, arguments)
    bench_slots(report, arguments)


PARTS = {"graph": bench_graph, "admission": bench_admission}


def plot(axes: Axes, tables: Mapping[str, list[Row]]) -> None:
    rows = tables.get(GRAPH_TABLE, [])
    for name in LIBRARIES:
        points = [(row["nodes"], row["total_us"]) for row in rows if row["library"] == name]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="build and run, us per node")
    axes.legend()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", action="append", choices=[*PARTS], help="default: all")
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    parts = arguments.part or [*PARTS]
    report = Report(
        "bench_scheduler",
        arguments,
        packages=("networkx", "rustworkx", "pybind11"),
        note="The runtime's own overhead: no engine and no network is part of these numbers.",
    )
    for part in parts:
        PARTS[part](report, arguments)
    report.finish(plot if "graph" in parts else None)


if __name__ == "__main__":
    main()
