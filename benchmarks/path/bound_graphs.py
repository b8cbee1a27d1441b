"""How much faster than one after another the graphs of a data set can be answered at best.

    python -m benchmarks.path.bound_graphs --graphs strategyqa=FILE --graphs break=FILE
        [--profile FILE]

Every graph of two nodes or more; no engine and no server: the bounds are those that a replay is
measured against (`compllm.lab.replay.ideal`), the tokens those that the simulator counts. Beside
the profile stands the built-in `gpu-like` one, which is hypothetical. Without --graphs: the shapes
of bench_replay. Saves bound_graphs.json and .md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.intervals import mean
from benchmarks.path.bench_replay import read_sets
from benchmarks.report import RESULTS, Report, Row, add_arguments
from benchmarks.tables import write_markdown
from compllm.build_scripts.staging import run_script
from compllm.catalogue import Catalogue, load_catalogue
from compllm.config import Config
from compllm.lab.engine_profile import GPU_LIKE, EngineProfile, load_profile
from compllm.lab.replay.graphs import ReplayGraph
from compllm.lab.replay.ideal import Load, ideal, sequential_ms, structural_speedup
from compllm.lab.replay.workload import TokenLengths
from compllm.lab.simulate.workload import Encode, RequestCounter, base_encode
from compllm.plan import format_line
from compllm.types import ANSWER_NODE, PLAN_NODE

WORK = "the graphs"
SPEEDUPS = "speed-up over one after another that a graph allows"
MOMENTS = "first token of the answer over the whole, at the bound"
_QUICK_GRAPHS = 4  # of each set

NOTE = (
    "All graphs of two nodes or more, each once. structural: all nodes' tokens over those of the "
    "longest path, on an engine whose steps never get slower; stage: the nodes alone, on the "
    "engine's step times; whole: the generator writes the gold plan, each node starts at its line, "
    "an answer is composed. Mean over graphs, low and high: its 95 % bootstrap interval. Prompts "
    "are counted, not run: what all prompts of a kind begin with is taken to be in the engine's "
    "cache in whole blocks, nothing else of them is (no salt); "
    "every node has the base expert's system text; a response counts in its children's "
    "prompts with the tokens that were forced. No time of host, wire or router, no growth of a "
    "step with its context."
)


class LoadCounter(RequestCounter):
    """The simulator's counts of a graph's requests, as the bound takes them."""

    def __init__(
        self, encode: Encode, tokens_per_block: int, catalogue: Catalogue | None = None
    ) -> None:
        super().__init__(encode, tokens_per_block, catalogue or load_catalogue())

    def loads(
        self, graph: ReplayGraph, lengths: TokenLengths, answer_tokens: int
    ) -> dict[int, Load]:
        """Of plan, nodes and a composed answer."""
        nodes, num_new = graph.plan.sub_queries, lengths.of(graph)
        quoted = {each.id: self._count(f"- {each.text} \n") + num_new[each.id] for each in nodes}
        loads: dict[int, Load] = {}
        num_planned = 0
        for node in nodes:
            # A replay's plan ends without a newline; the simulator counts one there.
            num_planned += self._count(format_line(node) + ("\n" if node is not nodes[-1] else ""))
            own = self._fresh(self._node, node.text) + (self._num_facts if node.parents else 0)
            num_prompt = own + sum(quoted[parent] for parent in node.parents)
            loads[node.id] = Load(num_prompt, num_new[node.id], node.parents, num_planned)
        inner = {parent for node in nodes for parent in node.parents}
        leaves = tuple(node.id for node in nodes if node.id not in inner)
        num_prompt = self._fresh(self._answer, graph.question) + sum(
            quoted[leaf] for leaf in leaves
        )
        return {
            PLAN_NODE: Load(self._fresh(self._plan, graph.question), num_planned),
            **loads,
            ANSWER_NODE: Load(num_prompt, answer_tokens, leaves),
        }


def nodes_alone(loads: Mapping[int, Load]) -> dict[int, Load]:
    """Part `stage` of the same query: the plan is given, no answer is composed."""
    return {
        node: replace(load, num_plan_tokens=0)
        for node, load in loads.items()
        if node not in (PLAN_NODE, ANSWER_NODE)
    }


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one engine allows the graphs of a set, in their order."""

    stage: list[float]  # speed-ups
    whole: list[float]
    ttft_of_total: list[float]  # of the whole


def bounds(all_loads: Sequence[Mapping[int, Load]], profile: EngineProfile) -> Bounds:
    found = Bounds([], [], [])
    for loads in all_loads:
        stage = nodes_alone(loads)
        found.stage.append(sequential_ms(stage.values(), profile) / ideal(stage, profile).total_ms)
        whole = ideal(loads, profile)
        found.whole.append(sequential_ms(loads.values(), profile) / whole.total_ms)
        found.ttft_of_total.append(whole.ttft_of_total)
    return found


def cells(values: Sequence[float], seed: int) -> Row:
    """The mean with its interval, and the smallest value that a percentage of them does not
    exceed."""
    estimate = mean(values, seed)
    p10, p50, p90 = np.percentile(values, (10, 50, 90), method="inverted_cdf").tolist()
    numbers = {"mean": estimate.value, "low": estimate.low, "high": estimate.high}
    numbers |= {"p10": p10, "p50": p50, "p90": p90}
    return {name: round(value, 4) for name, value in numbers.items()}


def add_set(
    report: Report, name: str, graphs: Sequence[ReplayGraph], arguments: argparse.Namespace
) -> None:
    """The rows of one data set."""
    measured = load_profile(str(arguments.profile))
    encode, report.summary["tokens_counted_by"] = base_encode()
    counter = LoadCounter(encode, measured.tokens_per_block)
    lengths = TokenLengths(arguments.tokens_per_node)
    all_loads = [counter.loads(graph, lengths, arguments.answer_tokens) for graph in graphs]
    structural = [structural_speedup(loads) for loads in all_loads]
    report.add(WORK, **work_cells(name, graphs, all_loads))
    head: Row = {"set": name, "graphs": len(graphs)}
    report.add(
        SPEEDUPS, **head, bound="structural", engine="any", **cells(structural, arguments.seed)
    )
    for profile in (measured, GPU_LIKE):
        found = bounds(all_loads, profile)
        engine = f"{profile.name} (hypothetical)" if profile.is_hypothetical else profile.name
        for part in ("stage", "whole"):
            row = cells(getattr(found, part), arguments.seed)
            report.add(SPEEDUPS, **head, bound=part, engine=engine, **row)
        row = cells(found.ttft_of_total, arguments.seed)
        report.add(MOMENTS, **head, bound="whole", engine=engine, **row)


def work_cells(
    name: str, graphs: Sequence[ReplayGraph], all_loads: Sequence[Mapping[int, Load]]
) -> Row:
    def average(values: Sequence[int]) -> float:
        return round(sum(values) / len(values), 2)

    nodes = [load for loads in all_loads for load in nodes_alone(loads).values()]
    return {
        "set": name,
        "graphs": len(graphs),
        "chains": sum(graph.width == 1 for graph in graphs),
        "mean_nodes": average([len(graph.plan.sub_queries) for graph in graphs]),
        "mean_depth": average([graph.depth for graph in graphs]),
        "mean_plan_tokens": average([loads[PLAN_NODE].num_new_tokens for loads in all_loads]),
        "mean_plan_prompt": average([loads[PLAN_NODE].num_prompt_tokens for loads in all_loads]),
        "mean_node_prompt": average([load.num_prompt_tokens for load in nodes]),
        "mean_answer_prompt": average(
            [loads[ANSWER_NODE].num_prompt_tokens for loads in all_loads]
        ),
    }


def bound(arguments: argparse.Namespace) -> None:
    limit = _QUICK_GRAPHS if arguments.quick else sys.maxsize
    sets = read_sets(argparse.Namespace(**vars(arguments), limit=limit), Config())
    report = Report("bound_graphs", arguments, ("numpy", "scipy", "tokenizers"), NOTE)
    for name, graphs in sets.items():
        add_set(report, name, graphs, arguments)
    report.finish()
    if not (arguments.quick and arguments.out == RESULTS):
        write_markdown(report, "What the graphs allow", arguments.out, NOTE)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--graphs", action="append", metavar="NAME=FILE", help="any number of sets")
    parser.add_argument("--profile", default=RESULTS / "engine_profile.json", metavar="FILE")
    parser.add_argument("--tokens-per-node", type=int, default=32)
    parser.add_argument("--answer-tokens", type=int, default=64)
    arguments = parser.parse_args(argv)
    return run_script(lambda: bound(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
