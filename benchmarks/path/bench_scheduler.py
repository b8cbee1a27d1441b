"""What scheduling costs: microseconds per node, of the C++ core beside what Python offers.

    python -m benchmarks.path.bench_scheduler [--part graph|admission|engine]... [--quick]

graph: build a random DAG node by node and run it, one event per finished node, with the core, its
Python face, graphlib, networkx and rustworkx. admission: a node's end among thousands of live
queries: graph done, what became ready enters, release to the next. No engine is part of either.
engine: see dispatch_latency.py; on the server of the settings or `compllm up`, else its own.
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
from typing import TYPE_CHECKING

from benchmarks.path import dispatch_latency, live_queries
from benchmarks.path.workloads import Parents, random_dag
from benchmarks.report import Report, Row, add_arguments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES = (8, 64, 1_024, 16_384, 131_072, 1_000_000)
QUICK_SIZES = (8, 64, 1_024)

GRAPH_TABLE = "graph: us of CPU per node"

Done = Callable[[int], Iterable[int]]  # ends a node; returns what became ready
Built = tuple[Iterable[int], Done]  # what is ready at the start, and how to end a node

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
    "compllm._core": build_core,
    "compllm._core, built at once": build_core_at_once,
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
    """Microseconds of CPU per node to build and to run a number of graphs of one shape."""
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


def bench_engine(report: Report, arguments: argparse.Namespace) -> None:
    from compllm.config import load_config
    from compllm.server import triton_server

    async def run(url: str) -> None:
        engine = await dispatch_latency.connect(url)
        await dispatch_latency.bench(
            report, arguments, scripted=dispatch_latency.scripted(), engine=engine
        )

    with contextlib.ExitStack() as stack:
        url = load_config().server.url
        asyncio.run(run(url or stack.enter_context(triton_server.running()).grpc_url))


PARTS = {"graph": bench_graph, "admission": live_queries.bench, "engine": bench_engine}


def plot(axes: Axes, tables: Mapping[str, list[Row]]) -> None:
    rows = tables.get(GRAPH_TABLE, [])
    for name in LIBRARIES:
        points = [(row["nodes"], row["total_us"]) for row in rows if row["library"] == name]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="nodes", ylabel="build and run, us per node")
    axes.legend()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--part",
        action="append",
        choices=[*PARTS],
        help="may be repeated; default: graph and admission, which no engine disturbs",
    )
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    parts = arguments.part or ["graph", "admission"]
    report = Report(
        # A run beside an engine is another experiment than one without: it gets a file of its own.
        "bench_scheduler_engine" if "engine" in parts else "bench_scheduler",
        arguments,
        packages=("networkx", "rustworkx", "pybind11"),
        note="The runtime's own overhead. No engine and no network is part of the numbers, but for"
        " the rows `engine`.",
    )
    for part in parts:
        PARTS[part](report, arguments)
    report.finish(plot if "graph" in parts else None)


if __name__ == "__main__":
    main()
