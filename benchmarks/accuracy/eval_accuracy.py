"""How often is the answer right, who loses it where, and what does it cost?

    python -m benchmarks.accuracy.eval_accuracy [--limit 50] [--part accuracy nodes ...]
        [--adapter NAME=DIR]

Comp-LLM against the base, the base with a chain of thought, one monolithic adapter and experts
without decomposition, on the test questions of the composite sets; then with gold plans, routes and
sub-answers; each expert alone by kind of question; the aggregator; how one wrong sub-answer
travels; seconds and parameters. The whole path runs on the embedded engine in this process, many
questions at a time. Outcomes are kept in $COMPLLM_HOME/evaluation: a killed run goes on, a changed
setting, adapter or record is run anew. Writes eval_accuracy.json, .md and .png.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from benchmarks.report import RESULTS, Report, Row
from benchmarks.report import add_arguments as add_report_arguments

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from benchmarks.accuracy.contestants import Contestant
    from benchmarks.accuracy.engine import LocalEngine
    from benchmarks.accuracy.lab import Lab
    from benchmarks.accuracy.records import Composite
    from benchmarks.accuracy.runner import Outcome

PARTS = ("accuracy", "nodes", "aggregator", "propagation", "latency")
ACCURACY = "accuracy"
SHOTS = {"p": 2, "all": 2}  # worked examples for the chain of thought
QUICK = 4  # records of each file, with --quick
_FEW_NODES = 4  # a worked example must fit beside the others
LATENCY = ("compllm-3", "compllm-2", "base", "base-cot", "monolithic", "direct")
NOTE = (
    "Our sets, a reconstruction: MultiExpertQA is not public. Exact: equal to the gold answer after"
    " Unicode NFKC, lower case, white space, closing punctuation, thousands commas, a trailing .0"
    " and articles before longer words; several answers part by part, in order. Contains: every"
    " part of the gold answer stands somewhere in the answer as whole words. In brackets: 95 %"
    " bootstrap interval over questions."
)


@dataclass(slots=True)
class Results:
    """Outcomes by contestant and set, with their records."""

    records: dict[str, list[Composite]]
    outcomes: dict[str, dict[str, list[Outcome]]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)

    def hits(self, name: str, set_name: str) -> list[bool]:
        from benchmarks.accuracy.metrics import is_exact

        pairs = zip(self.outcomes[name][set_name], self.records[set_name], strict=True)
        return [is_exact(outcome["answer"], record.answer) for outcome, record in pairs]


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    from benchmarks.accuracy.lab import add_arguments
    from compllm.build_scripts.staging import run_script

    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").split("\n\n")[0])
    add_report_arguments(parser)
    add_arguments(parser)
    parser.add_argument(
        "--part", nargs="+", choices=PARTS, default=list(PARTS), help="tables to make; default: all"
    )
    parser.add_argument(
        "--sets",
        nargs="+",
        default=["p", "all"],
        metavar="SET",
        help="data sets to ask: p (independent sub-questions), all (dependent ones too); default: "
        "both",
    )
    parser.add_argument(
        "--contestants", nargs="+", metavar="NAME", help="systems to compare; default: all"
    )
    parser.add_argument(
        "--two",
        nargs=2,
        default=["chemistry", "biology"],
        metavar="EXPERT",
        help="the experts of the contestant compllm-2; default: chemistry biology",
    )
    parser.add_argument(
        "--latency-queries",
        type=int,
        default=30,
        metavar="N",
        help="questions of each set for the part latency; default: 30",
    )
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.limit = min(arguments.limit or QUICK, QUICK)
        arguments.latency_queries = min(arguments.latency_queries, 2)
    return run_script(lambda: asyncio.run(_evaluate(arguments)))


async def _evaluate(arguments: argparse.Namespace) -> None:
    from benchmarks.accuracy.lab import open_lab
    from benchmarks.accuracy.latency import resident_mib
    from benchmarks.tables import write_markdown

    packages = ("openvino", "scipy", "sentence-transformers")
    report = Report("eval_accuracy", arguments, packages, NOTE)
    memory: dict[str, float] = {"python_mib": resident_mib()}
    async with open_lab(arguments) as (lab, engine):
        memory["engine_and_encoder_mib"] = resident_mib()
        report.summary["models"] = _models(lab)
        await _run_parts(arguments, report, lab, engine)
        memory["after_all_mib"] = resident_mib()
    report.summary["memory"] = memory
    if arguments.out != RESULTS or not arguments.quick:
        write_markdown(report, "Accuracy", arguments.out, NOTE)
    report.finish(plot if ACCURACY in report.tables else None)


async def _run_parts(
    arguments: argparse.Namespace, report: Report, lab: Lab, engine: LocalEngine
) -> None:
    from benchmarks.accuracy import nodes, propagation
    from benchmarks.accuracy.contestants import contestants
    from benchmarks.accuracy.lab import data_dir, work_of
    from benchmarks.accuracy.latency import latency_rows, size_rows
    from benchmarks.accuracy.records import read_composites, read_facts, read_nodes
    from compllm.paths import encoder_dir

    data, work, seed = data_dir(arguments), work_of(arguments), arguments.seed
    file = f"{arguments.split}.jsonl"
    sets: dict[str, list[Composite]] = {}
    if {"accuracy", "propagation", "latency"} & {*arguments.part}:
        sets = {
            name: read_composites(data / name / file)[: arguments.limit] for name in arguments.sets
        }
    chosen: list[Contestant] = []
    if {"accuracy", "latency"} & {*arguments.part}:
        every = contestants(lab, _shots(data, seed), arguments.two)
        chosen = _choose(every, arguments.contestants)
    if "accuracy" in arguments.part:
        results = await run_accuracy(lab, chosen, sets, arguments)
        add_accuracy(report, results, arguments.two, seed)
    if "nodes" in arguments.part:
        items = {d: read_nodes(data / d / file)[: arguments.limit] for d in nodes.DOMAINS}
        answered = await nodes.answer_nodes(lab, items, work)
        _add_all(report, "single sub-queries (gold parents)", nodes.domain_rows(answered, seed))
        _add_all(report, "single sub-queries by kind", nodes.kind_rows(answered))
    if "aggregator" in arguments.part:
        facts = read_facts(data / "aggregator" / file)[: arguments.limit]
        rows = await nodes.aggregator_rows(lab, facts, work, seed)
        _add_all(report, "aggregator (gold facts)", rows)
    if "propagation" in arguments.part:
        every_record = [record for records in sets.values() for record in records]
        flipped, outcomes = await propagation.propagate(lab, every_record, work, seed)
        if flipped:
            rows = propagation.propagation_rows(flipped, outcomes, seed)
            _add_all(report, "one wrong parent (gold plan, routes and other responses)", rows)
    if "latency" in arguments.part:
        timed = [contestant for contestant in chosen if contestant.name in LATENCY]
        for name, records in sets.items():
            sample = records[: arguments.latency_queries + 1]
            rows = await latency_rows(lab, engine, timed, sample)
            _add_all(report, f"seconds a question, one at a time: {name}", rows)
        _add_all(report, "parameters", size_rows(lab, engine, encoder_dir(), arguments.two))


async def run_accuracy(
    lab: Lab,
    chosen: Sequence[Contestant],
    sets: Mapping[str, list[Composite]],
    arguments: argparse.Namespace,
) -> Results:
    from benchmarks.accuracy.contestants import joined
    from benchmarks.accuracy.lab import work_of
    from benchmarks.accuracy.runner import run_records

    results = Results(dict(sets))
    for contestant in chosen:
        results.titles[contestant.name] = contestant.title
        found = results.outcomes[contestant.name] = {}
        async with contestant.open(lab) as answer:
            for name, records in sets.items():
                store = lab.store(f"{contestant.name}-{name}", depends=contestant.depends)
                title = f"{contestant.name}: {name}"
                work = work_of(arguments)
                found[name] = await run_records(title, records, answer, store, work)
    if "compllm-3" in results.outcomes:
        results.titles["joined"] = "Comp-LLM, leaves joined without a model"
        results.outcomes["joined"] = {
            name: [joined(outcome) for outcome in outcomes]
            for name, outcomes in results.outcomes["compllm-3"].items()
        }
    return results


def add_accuracy(report: Report, results: Results, two: Sequence[str], seed: int) -> None:
    """The table of all contestants, the questions that two experts can answer, and what lies
    between Comp-LLM and each other contestant on the same questions."""
    from benchmarks.intervals import mean
    from benchmarks.tables import interval_cells

    for name, title in results.titles.items():
        report.add("contestants", contestant=name, what=title)
    for name, by_set in results.outcomes.items():
        for set_name in by_set:
            everything = range(len(results.records[set_name]))
            report.add(ACCURACY, **_accuracy_row(results, name, set_name, everything, seed))
    for name in ("compllm-3", "compllm-2"):
        for set_name in results.outcomes.get(name, {}):
            inside = [
                at
                for at, record in enumerate(results.records[set_name])
                if {*record.experts} <= {*two}
            ]
            if inside:
                row = _accuracy_row(results, name, set_name, inside, seed)
                report.add(f"questions of {' and '.join(two)} alone", **row)
    ours = results.outcomes.get("compllm-3", {})
    for name in results.outcomes:
        for set_name in ours if name != "compllm-3" else ():
            pairs = zip(
                results.hits("compllm-3", set_name), results.hits(name, set_name), strict=True
            )
            gain = mean([float(a) - float(b) for a, b in pairs], seed)
            report.add(
                "Comp-LLM minus another, points of exact match on the same questions",
                other=name,
                set=set_name,
                **interval_cells("difference", gain),
            )
            report.summary.setdefault("difference", {})[f"{name} {set_name}"] = gain.percent()
    for name, by_set in results.outcomes.items():
        report.summary.setdefault("exact_percent", {})[name] = {
            set_name: mean(results.hits(name, set_name), seed).percent() for set_name in by_set
        }


def _accuracy_row(
    results: Results, name: str, set_name: str, places: Sequence[int], seed: int
) -> Row:
    from benchmarks.accuracy.metrics import contains_all, is_verbatim
    from benchmarks.intervals import mean
    from benchmarks.tables import interval_cells

    hits = results.hits(name, set_name)
    pairs = [
        (results.outcomes[name][set_name][at], results.records[set_name][at].answer)
        for at in places
    ]
    inside = [contains_all(outcome["answer"], gold) for outcome, gold in pairs]
    verbatim = [is_verbatim(outcome["answer"], gold) for outcome, gold in pairs]
    return {
        "contestant": name,
        "set": set_name,
        "questions": len(pairs),
        **interval_cells("exact", mean([hits[at] for at in places], seed)),
        **interval_cells("contains", mean(inside, seed)),
        "verbatim_%": mean(verbatim, seed).percent()["value"],
        "fallback_plans": sum(outcome["is_fallback"] for outcome, _ in pairs),
        "errors": sum(outcome["error"] is not None for outcome, _ in pairs),
    }


def plot(axes: Axes, tables: Mapping[str, list[Row]]) -> None:
    """Exact match of every contestant, a bar a set."""
    rows = tables[ACCURACY]
    names = list(dict.fromkeys(str(row["contestant"]) for row in rows))
    sets = list(dict.fromkeys(str(row["set"]) for row in rows))
    height = 0.8 / len(sets)
    for at, set_name in enumerate(sets):
        chosen = [row for row in rows if row["set"] == set_name]
        places = [names.index(str(row["contestant"])) + at * height for row in chosen]
        values = [float(row["exact_%"] or 0) for row in chosen]
        below = [v - float(r["exact_low"] or 0) for v, r in zip(values, chosen, strict=True)]
        above = [float(r["exact_high"] or 0) - v for v, r in zip(values, chosen, strict=True)]
        axes.barh(places, values, height, xerr=[below, above], label=f"-{set_name}", capsize=2)
    axes.set_yticks([at + 0.4 - height / 2 for at in range(len(names))], names)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("exact match, % (95 % interval)")
    axes.legend()


def _choose(every: Mapping[str, Contestant], names: Sequence[str] | None) -> list[Contestant]:
    from compllm.errors import ConfigError

    for name in names or ():
        if name not in every:
            raise ConfigError(f"no contestant {name!r}: there are {', '.join(every)}")
    return [contestant for name, contestant in every.items() if not names or name in names]


def _shots(data: Path, seed: int) -> list[Composite]:
    """Short worked examples out of the training split, of both sets in turn."""
    from benchmarks.accuracy.records import read_composites

    found: list[Composite] = []
    for name, count in SHOTS.items():
        path = data / name / "train.jsonl"
        if path.is_file():
            records = read_composites(path)
            short = [r for r in records if 2 <= len(r.plan.sub_queries) <= _FEW_NODES]
            found += random.Random(seed).sample(short, min(count, len(short)))
    return found


def _models(lab: Lab) -> dict[str, object]:
    """Who is who in this run: a reader must see what was trained and what was not."""
    from benchmarks.accuracy.lab import role_name

    catalogue, untrained = lab.catalogue, "base with a few-shot prompt"
    generator = role_name(lab.config.generator.adapter, catalogue.generator)
    aggregator = role_name(lab.config.compose.adapter, catalogue.aggregator)
    return {
        "experts": {e.name: e.adapter or "base with a system text" for e in catalogue.experts},
        "generator": generator or untrained,
        "aggregator": aggregator or untrained,
        "router": str(catalogue.router.head.name if catalogue.router.head else "examples"),
        "compose_policy": lab.config.compose.policy,
        "adapters_in_engine": sorted(lab.adapters),
    }


def _add_all(report: Report, table: str, rows: Sequence[Row]) -> None:
    for row in rows:
        report.add(table, **row)


if __name__ == "__main__":
    sys.exit(main())
