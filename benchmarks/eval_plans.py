"""Are the generator's plans right: do they parse, is the graph the gold one, is the text?

    python -m benchmarks.eval_plans [--limit 100] [--adapter generator=DIR] [--unguided]

Plans the test questions of our composite sets, and those of the generator's set by source, among
them the held-out parts of the two human sets, and compares them with the gold plans. Beside each
row stands what the best plan that never reads the question reaches, out of all graphs of one to
four nodes: only what beats it counts. Outcomes are kept in $COMPLLM_HOME/evaluation: a killed run
goes on. Writes eval_plans.json, .md and .png.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.report import RESULTS, Report, Row
from benchmarks.report import add_arguments as add_report_arguments
from compllm.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.evaluation.plans import Graph
    from benchmarks.evaluation.records import PlanItem
    from benchmarks.evaluation.runner import Outcome

GRAPHS, TEXTS, CONSTANTS = "graphs", "texts", "the best constant plans"
COMPOSITES = ("p", "all")
QUICK = 4
NOTE = (
    "Nodes are compared by place, edges as pairs of places; F1 is pooled over all questions of a"
    " row. Meaning: the same graph, and every sub-query equal but for case, articles, punctuation"
    ' and "X\'s N" for "the N of X". Text F1: sub-queries of equal meaning, wherever they stand.'
    " Best constant: the highest value that any one graph of 1 to 4 nodes, the same for every"
    " question, has in that column. In brackets: 95 % bootstrap interval over questions."
)


def main(argv: Sequence[str] | None = None) -> int:
    from benchmarks.evaluation.lab import add_arguments
    from compllm.build_scripts.staging import run_script

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_report_arguments(parser)
    add_arguments(parser)
    parser.add_argument("--source", nargs="+", metavar="NAME", help="these alone; default: all")
    parser.add_argument("--unguided", action="store_true", help="without guided decoding")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.limit = min(arguments.limit or QUICK, QUICK)
    return run_script(lambda: asyncio.run(_evaluate(arguments)))


async def _evaluate(arguments: argparse.Namespace) -> None:
    from benchmarks.evaluation.lab import data_dir, open_lab, work_of
    from benchmarks.evaluation.planning import planner
    from benchmarks.evaluation.runner import run_records
    from benchmarks.evaluation.tables import write_markdown

    report = Report("eval_plans", arguments, ("openvino", "scipy"), NOTE)
    sources = read_sources(data_dir(arguments), arguments.split, arguments.limit)
    wanted = _choose(sources, arguments.source)
    async with open_lab(arguments) as (lab, _):
        if arguments.unguided:
            generator = replace(lab.config.generator, is_guided=False)
            lab = replace(lab, config=replace(lab.config, generator=generator))
        report.summary["generator"] = lab.config.generator.adapter or "base with a few-shot prompt"
        report.summary["max_nodes"] = lab.config.generator.max_nodes
        for source, items in wanted.items():
            store, work = lab.store(f"plans-{source}"), work_of(arguments)
            plan = planner(lab)
            outcomes = await run_records(f"plans: {source}", items, plan, store, work)
            add_rows(report, source, items, outcomes, arguments.seed)
    if arguments.out != RESULTS or not arguments.quick:
        write_markdown(report, "Plans", arguments.out, NOTE)
    report.finish(plot)


def read_sources(data: Path, split: str, limit: int | None) -> dict[str, list[PlanItem]]:
    """The composite sets, then the generator's records by their source."""
    from benchmarks.evaluation.records import PlanItem, read_composites, read_plans

    file = f"{split}.jsonl"
    sources: dict[str, list[PlanItem]] = {}
    for name in COMPOSITES:
        records = read_composites(data / name / file)
        sources[name] = [PlanItem(r.id, name, r.question, r.plan) for r in records]
    for item in read_plans(data / "generator" / file):
        sources.setdefault(f"generator {item.source}", []).append(item)
    return {source: items[:limit] for source, items in sources.items() if items}


def add_rows(
    report: Report, source: str, items: Sequence[PlanItem], outcomes: Sequence[Outcome], seed: int
) -> None:
    from benchmarks.evaluation.intervals import mean, pooled_f1
    from benchmarks.evaluation.planning import plan_of_outcome
    from benchmarks.evaluation.plans import (
        Graph,
        is_same_meaning,
        is_same_text,
        num_common_texts,
        score_graph,
    )
    from benchmarks.evaluation.tables import interval_cells

    pairs = [(plan_of_outcome(o), item.plan) for o, item in zip(outcomes, items, strict=True)]
    graphs = [(Graph.of(plan), Graph.of(gold)) for plan, gold in pairs]
    scores = [score_graph(graph, gold) for graph, gold in graphs]
    nodes = [score.num_nodes for score in scores]
    gold_nodes = [score.num_gold_nodes for score in scores]
    sizes = list(zip(nodes, gold_nodes, strict=True))
    node_f1 = pooled_f1([score.num_common_nodes for score in scores], nodes, gold_nodes, seed)
    edge_f1 = pooled_f1(
        [score.num_common_edges for score in scores],
        [score.num_edges for score in scores],
        [score.num_gold_edges for score in scores],
        seed,
    )
    text_f1 = pooled_f1([num_common_texts(*pair) for pair in pairs], nodes, gold_nodes, seed)
    report.add(
        GRAPHS,
        source=source,
        questions=len(pairs),
        **{"parsed_%": _percent(not outcome["is_fallback"] for outcome in outcomes)},
        **interval_cells("graph_exact", mean([score.is_exact for score in scores], seed)),
        **interval_cells("node_count", mean([ours == gold for ours, gold in sizes], seed)),
        **interval_cells("node_F1", node_f1),
        **interval_cells("edge_F1", edge_f1),
        **{"over_%": _percent(ours > gold for ours, gold in sizes)},
        **{"under_%": _percent(ours < gold for ours, gold in sizes)},
    )
    add_constant(report, source, [gold for _, gold in graphs])
    report.add(
        TEXTS,
        source=source,
        questions=len(pairs),
        **interval_cells("text_exact", mean([is_same_text(*pair) for pair in pairs], seed)),
        **interval_cells("meaning", mean([is_same_meaning(*pair) for pair in pairs], seed)),
        **interval_cells("text_F1", text_f1),
    )


def add_constant(report: Report, source: str, golds: Sequence[Graph]) -> None:
    """The best that any one graph reaches in each column, and which graph that is."""
    from benchmarks.evaluation import plans

    scored = [
        (constant, [plans.score_graph(constant, gold) for gold in golds])
        for constant in plans.constant_graphs()
    ]
    row: Row = {}
    for name, measure in plans.MEASURES.items():
        value, best = max(
            ((measure(scores), constant) for constant, scores in scored), key=lambda pair: pair[0]
        )
        row[f"{name}_%"] = round(100 * value, 1)
        report.add(CONSTANTS, source=source, measure=name, plan=str(best), best=row[f"{name}_%"])
    report.add(GRAPHS, source=f"{source}, best constant", questions=len(golds), **row)


def plot(axes: Axes, tables: Mapping[str, list[Row]]) -> None:
    """Structural scores by source, beside the best constant plan's."""
    rows = [row for row in tables[GRAPHS] if "parsed_%" in row]
    names = [str(row["source"]) for row in rows]
    constants = {str(row["source"]): row for row in tables[GRAPHS] if "parsed_%" not in row}
    measures = ("graph_exact", "node_count", "edge_F1")
    height = 0.8 / len(measures)
    for at, measure in enumerate(measures):
        places = [place + at * height for place in range(len(names))]
        axes.barh(places, [float(row[f"{measure}_%"] or 0) for row in rows], height, label=measure)
        best = [float(constants[f"{n}, best constant"][f"{measure}_%"] or 0) for n in names]
        label = "best constant plan" if not at else None
        axes.plot(best, places, "k|", markersize=9, label=label)
    axes.set_yticks([at + height for at in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("%")
    axes.legend()


def _percent(values: Iterable[bool]) -> float:
    found = list(values)
    return round(100 * sum(found) / len(found), 1)


def _choose(
    sources: Mapping[str, list[PlanItem]], names: Sequence[str] | None
) -> dict[str, list[PlanItem]]:
    for name in names or ():
        if name not in sources:
            raise ConfigError(f"no source {name!r}: there are {', '.join(map(repr, sources))}")
    return {name: items for name, items in sources.items() if not names or name in names}


if __name__ == "__main__":
    sys.exit(main())
