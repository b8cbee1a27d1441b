"""Are the generator's plans right: do they parse, is the graph the gold one, is the text?

    python -m benchmarks.accuracy.eval_plans [--limit 100] [--adapter generator=DIR] [--unguided]
    python -m benchmarks.accuracy.eval_plans --classifier

Plans the test questions of the generator's set, source by source: our composite sets, questions
that need no plan, and the held-out parts of the two human sets; compares with the gold plans.
Beside them stands what the best plan that never reads the question reaches, out of all graphs of
one to four nodes: only what beats it counts. --classifier asks of the human sets what could be
beaten at all: how far a classifier predicts the graph from the question, without writing any
sub-query (no engine needed; eval_plans_foretold.json and .md). Outcomes are kept in
$COMPLLM_HOME/evaluation: a killed run goes on. Writes eval_plans.json, .md and .png.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
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

    from benchmarks.accuracy.plans import Graph
    from benchmarks.accuracy.records import PlanItem
    from benchmarks.accuracy.runner import Outcome
    from benchmarks.intervals import Estimate
    from compllm.types import Plan

    GraphPairs = Sequence[tuple[Graph, Graph]]  # ours, gold

SHAPES = "how many sub-queries"
GRAPHS = "graphs, beside the best constant plan"
TEXTS = "texts of sub-queries"
BY_SIZE = "by number of gold sub-queries"
FORETOLD = "graphs foretold from the question"
COMPOSITES = ("p", "all")
HUMAN = ("strategyqa", "break")
QUICK = 4
NOTE = (
    "Nodes are compared by place, edges as pairs of places; F1 is pooled over all questions of a"
    " row. Meaning: the same graph, and every sub-query equal but for case, articles, punctuation"
    ' and "X\'s N" for "the N of X". Text F1: sub-queries of equal meaning, wherever they stand.'
    " Best constant: the highest value that any one graph of 1 to 4 nodes, the same for every"
    " question, has in that column. In brackets: 95 % bootstrap interval over questions."
)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    from benchmarks.accuracy.lab import add_arguments
    from compllm.build_scripts.staging import run_script

    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").split("\n\n")[0])
    add_report_arguments(parser)
    add_arguments(parser)
    parser.add_argument(
        "--source", nargs="+", metavar="NAME", help="sets of questions; default: all"
    )
    parser.add_argument("--unguided", action="store_true", help="without guided decoding")
    parser.add_argument(
        "--max-nodes",
        type=int,
        metavar="N",
        help="sub-queries of a plan at most; default: generator.max_nodes",
    )
    parser.add_argument(
        "--classifier", action="store_true", help="the human sets' graphs by a classifier instead"
    )
    arguments = parser.parse_args(argv)
    if arguments.classifier:
        return run_script(lambda: _classify(arguments))
    if arguments.quick:
        arguments.limit = min(arguments.limit or QUICK, QUICK)
    return run_script(lambda: asyncio.run(_evaluate(arguments)))


async def _evaluate(arguments: argparse.Namespace) -> None:
    from benchmarks.accuracy.lab import data_dir, open_lab, role_name, work_of
    from benchmarks.accuracy.planning import planner
    from benchmarks.accuracy.runner import run_records
    from benchmarks.tables import write_markdown

    report = Report("eval_plans", arguments, ("openvino", "scipy"), NOTE)
    sources = read_sources(data_dir(arguments), arguments.split, arguments.limit)
    wanted = _choose(sources, arguments.source)
    async with open_lab(arguments) as (lab, _):
        generator = lab.config.generator
        generator = replace(
            generator,
            is_guided=generator.is_guided and not arguments.unguided,
            max_nodes=arguments.max_nodes or generator.max_nodes,
        )
        lab = replace(lab, config=replace(lab.config, generator=generator))
        report.summary["generator"] = {
            "model": role_name(generator.adapter, lab.catalogue.generator)
            or "base with a few-shot prompt",
            "is_guided": generator.is_guided,
            "max_nodes": generator.max_nodes,
        }
        graphs: dict[str, GraphPairs] = {}
        for source, items in wanted.items():
            store, work = lab.store(f"plans-{source}"), work_of(arguments)
            plan = planner(lab)
            outcomes = await run_records(f"plans: {source}", items, plan, store, work)
            graphs[source] = add_rows(report, source, items, outcomes, arguments.seed)
        if all(graphs.get(source) for source in HUMAN):
            # One constant for both: a server does not know which set a question is from.
            both = [pair for source in HUMAN for pair in graphs[source]]
            _add_graphs(report, " and ".join(HUMAN), both, arguments.seed)
    if arguments.out != RESULTS or not arguments.quick:
        write_markdown(report, "Plans", arguments.out, NOTE)
    report.finish(plot)


def _classify(arguments: argparse.Namespace) -> None:
    """All records of the human sets, whatever split they are in: the classifier has its own."""
    from benchmarks.accuracy.lab import data_dir
    from benchmarks.accuracy.plans import Graph, best_constants
    from benchmarks.accuracy.records import read_plans
    from benchmarks.accuracy.shapes import NUM_FOLDS, foretell
    from benchmarks.tables import write_markdown

    note = (
        f"Shapes predicted by logistic regression on the question's words, {NUM_FOLDS}-fold"
        " cross-validation, beside the best graph that is the same for every question."
    )
    report = Report("eval_plans_foretold", arguments, ("scikit-learn", "scipy"), note)
    folder = data_dir(arguments) / "generator"
    files = [folder / f"{split}.jsonl" for split in ("train", "validation", "test")]
    everything = [item for file in files for item in read_plans(file)]
    for source in arguments.source or HUMAN:
        items = [item for item in everything if item.source == source][: arguments.limit]
        if not items:
            raise ConfigError(
                f"no {source!r} questions in {folder}: make the data sets with --strategyqa and"
                " --break"
            )
        golds = [Graph.of(item.plan) for item in items]
        best = best_constants(golds)
        for measure, value in foretell([i.question for i in items], golds, arguments.seed).items():
            report.add(
                FORETOLD,
                source=source,
                questions=len(items),
                measure=measure,
                **{
                    "foretold_%": round(100 * value, 1),
                    "best_constant_%": round(100 * best[measure][0], 1),
                },
                constant_plan=str(best[measure][1]),
            )
    if arguments.out != RESULTS or not arguments.quick:
        write_markdown(report, "Plans predicted from the question", arguments.out, note)
    report.finish()


def read_sources(data: Path, split: str, limit: int | None) -> dict[str, list[PlanItem]]:
    """The generator's records by their source; the composite sets too where it has none of them."""
    from benchmarks.accuracy.records import PlanItem, read_composites, read_plans

    file = f"{split}.jsonl"
    sources: dict[str, list[PlanItem]] = {}
    for item in read_plans(data / "generator" / file):
        sources.setdefault(item.source, []).append(item)
    for name in COMPOSITES:
        if name not in sources:
            records = read_composites(data / name / file)
            sources[name] = [PlanItem(r.id, name, r.question, r.plan) for r in records]
    return {source: sources[source][:limit] for source in sorted(sources)}


def add_rows(
    report: Report, source: str, items: Sequence[PlanItem], outcomes: Sequence[Outcome], seed: int
) -> GraphPairs:
    """The rows of one source; returns its graphs, each with the gold one."""
    from benchmarks.accuracy.planning import plan_of_outcome
    from benchmarks.accuracy.plans import Graph, is_same_meaning, is_same_text
    from benchmarks.intervals import mean
    from benchmarks.tables import interval_cells

    pairs = [(plan_of_outcome(o), item.plan) for o, item in zip(outcomes, items, strict=True)]
    graphs = [(Graph.of(plan), Graph.of(gold)) for plan, gold in pairs]
    sizes = [(graph.num_nodes, gold.num_nodes) for graph, gold in graphs]
    is_right = [is_same_meaning(*pair) for pair in pairs]
    report.add(
        SHAPES,
        source=source,
        questions=len(pairs),
        **{
            "parsed_%": _percent(not outcome["is_fallback"] for outcome in outcomes),
            "over-decomposed_%": _percent(ours > gold for ours, gold in sizes),
            "under-decomposed_%": _percent(ours < gold for ours, gold in sizes),
        },
        mean_nodes=round(statistics.fmean(ours for ours, _ in sizes), 2),
        mean_gold_nodes=round(statistics.fmean(gold for _, gold in sizes), 2),
    )
    _add_graphs(report, source, graphs, seed)
    report.add(
        TEXTS,
        source=source,
        questions=len(pairs),
        **interval_cells("exact", mean([is_same_text(*pair) for pair in pairs], seed)),
        **interval_cells("meaning", mean(is_right, seed)),
        **interval_cells("node_F1", _text_f1(pairs, seed)),
    )
    for count in sorted({gold for _, gold in sizes}):
        places = [at for at, (_, gold) in enumerate(sizes) if gold == count]
        report.add(
            BY_SIZE,
            source=source,
            gold_nodes=count,
            questions=len(places),
            **{
                "graph_exact_%": _percent(graphs[at][0] == graphs[at][1] for at in places),
                "meaning_%": _percent(is_right[at] for at in places),
            },
        )
    return graphs


def _add_graphs(report: Report, source: str, graphs: GraphPairs, seed: int) -> None:
    """Each structural measure, beside the best that any one graph reaches in it."""
    from benchmarks.accuracy import plans
    from benchmarks.intervals import mean, pooled_f1
    from benchmarks.tables import interval_cells

    scores = [plans.score_graph(*pair) for pair in graphs]
    ours = {
        "graph exact": mean([score.is_exact for score in scores], seed),
        "node count": mean([score.num_nodes == score.num_gold_nodes for score in scores], seed),
        "node F1": pooled_f1(
            [score.num_common_nodes for score in scores],
            [score.num_nodes for score in scores],
            [score.num_gold_nodes for score in scores],
            seed,
        ),
        "edge F1": pooled_f1(
            [score.num_common_edges for score in scores],
            [score.num_edges for score in scores],
            [score.num_gold_edges for score in scores],
            seed,
        ),
    }
    best = plans.best_constants([gold for _, gold in graphs])
    for name, estimate in ours.items():
        value, constant = best[name]
        report.add(
            GRAPHS,
            source=source,
            questions=len(graphs),
            measure=name,
            **interval_cells("ours", estimate),
            **{"best_constant_%": round(100 * value, 1)},
            constant_plan=str(constant),
        )


def _text_f1(pairs: Sequence[tuple[Plan, Plan]], seed: int) -> Estimate:
    from benchmarks.accuracy.plans import num_common_texts
    from benchmarks.intervals import pooled_f1

    return pooled_f1(
        [num_common_texts(*pair) for pair in pairs],
        [len(plan.sub_queries) for plan, _ in pairs],
        [len(gold.sub_queries) for _, gold in pairs],
        seed,
    )


def plot(axes: Axes, tables: Mapping[str, list[Row]]) -> None:
    """Structural measures by source; a mark where the best constant plan stands."""
    rows = tables[GRAPHS]
    sources, measures = (
        list(dict.fromkeys(str(row[column]) for row in rows)) for column in ("source", "measure")
    )
    height = 0.8 / len(measures)
    for at, measure in enumerate(measures):
        chosen = [row for row in rows if row["measure"] == measure]
        places = [place + at * height for place in range(len(sources))]
        axes.barh(places, [float(row["ours_%"] or 0) for row in chosen], height, label=measure)
        best = [float(row["best_constant_%"] or 0) for row in chosen]
        axes.plot(best, places, "k|", markersize=9, label=None if at else "best constant plan")
    axes.set_yticks([at + 0.4 - height / 2 for at in range(len(sources))], sources)
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
