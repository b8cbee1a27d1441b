"""Parts of `eval_router.py` that fit routers: on one half of the subject questions, tested on the
other half."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.routing.bench import Bench, saves

if TYPE_CHECKING:
    from benchmarks.report import Cell, Row
    from benchmarks.routing.contestants import Sample
    from compllm.build_scripts.routing.thresholds import Curve
    from compllm.routing.embed import Array
    from compllm.routing.heads import Head

THREE = "three experts, everything else for none; and our sub-queries"
FLOORS = "floors chosen for a risk on one half, measured on the other"
BASE = "whose vectors: the sentence encoder's or the base model's (same questions)"
TOGETHER = "people's questions, generated ones fitted apart from them or together with them"
SCALE = "more experts"
GAIN = "best learned head over plain similarity"

SCALE_HEADS = ("means", "similarity", "neighbours", "logistic-experts", "logistic-topics")
RISKS = (0.05, 0.1, 0.2)


def part_three(bench: Bench) -> None:
    """The paper's three experts: choice, AUROC, time; then floors and the risk they keep."""
    from benchmarks.routing.contestants import fitted, microseconds
    from benchmarks.routing.metrics import auroc_interval, choice
    from benchmarks.routing.pictures import plot_risk
    from benchmarks.tables import interval_cells
    from compllm.build_scripts.routing.thresholds import risk_coverage

    fit_on, test_on = bench.split()
    own = bench.sample(bench.sub_queries()) if bench.sub_queries() else None
    everything = np.ones(len(test_on.labels), bool)
    curves: dict[str, Curve] = {}
    for name, head in fitted(fit_on, bench.experts):
        scores = head.scores(test_on.vectors)
        curves[name] = risk_coverage(scores, test_on.labels)
        bench.report.add(
            THREE,
            router=name,
            **interval_cells("choice", choice(scores, test_on.labels)),
            **interval_cells("AUROC_far", auroc_interval(scores, test_on.labels, test_on.is_far)),
            **interval_cells("AUROC_all", auroc_interval(scores, test_on.labels, everything)),
            **_own_cells(head, own),
            us_a_route=round(microseconds(head, test_on.vectors)),
        )
        bench.tick(f"three experts: {name}")
        if name in ("similarity", "neighbours", "logistic"):
            _add_floors(bench, name, fit_on, test_on, scores)
    bench.report.summary["three"] = {
        "fitted_on": len(fit_on.labels),
        "tested_on": len(test_on.labels),
        "in_domain": int((test_on.labels >= 0).sum()),
        "clearly_different": int((test_on.is_far & (test_on.labels < 0)).sum()),
        "own_sub_queries": len(own.labels) if own else 0,
    }
    if saves(bench.arguments):
        bench.arguments.out.mkdir(parents=True, exist_ok=True)
        plot_risk(bench.arguments.out / "eval_router_risk.png", curves)


def part_together(bench: Bench) -> None:
    """What fitting generated questions apart from people's brings."""
    from benchmarks.routing.contestants import fitted
    from benchmarks.routing.metrics import choice
    from benchmarks.tables import interval_cells
    from compllm.build_scripts.routing.questions import GENERATED

    apart, test_on = bench.split()
    # Without the mark of generated topics, fitting cannot separate them from people's.
    together = replace(apart, topics=np.char.replace(apart.topics, GENERATED, "own-"))
    for name in ("similarity", "logistic"):
        found = [
            next(head for _, head in fitted(sample, bench.experts, (name,))).scores(test_on.vectors)
            for sample in (apart, together)
        ]
        bench.report.add(
            TOGETHER,
            router=name,
            **interval_cells("apart", choice(found[0], test_on.labels)),
            **interval_cells("together", choice(found[1], test_on.labels)),
        )
        bench.tick(f"together: {name}")


def _own_cells(head: Head, own: Sample | None) -> dict[str, Cell]:
    """Sub-queries of our composite sets: whether their own expert scores highest."""
    from benchmarks.routing.metrics import choice
    from benchmarks.tables import interval_cells

    if own is None:
        return {}
    return interval_cells("own_choice", choice(head.scores(own.vectors), own.labels))


def _add_floors(bench: Bench, name: str, fit_on: Sample, test_on: Sample, scores: Array) -> None:
    from compllm.build_scripts.routing.fit import FITS, out_of_fold
    from compllm.build_scripts.routing.questions import GENERATED
    from compllm.build_scripts.routing.thresholds import at_floor, choose_floor

    texts = [question.text for question in fit_on.questions]
    # Only questions like the tested ones: our own are easy and would loosen the floor.
    own = [topic.startswith((GENERATED, "example-")) for topic in fit_on.topics]
    is_people = ~np.array(own)
    parts = (fit_on.vectors, fit_on.labels, fit_on.topics, bench.experts)
    unseen = out_of_fold(FITS[name], *parts, groups=texts)
    for risk in RISKS:
        chosen = choose_floor(unseen[is_people], fit_on.labels[is_people], risk)
        measured = at_floor(scores, test_on.labels, chosen.floor)
        bench.report.add(
            FLOORS,
            router=name,
            **{"wanted_risk_%": 100 * risk, "is_met": chosen.is_met, "floor": chosen.floor},
            **{f"{key}_%": round(100 * value, 1) for key, value in measured.items()},
        )
    bench.tick(f"floors: {name}")


def part_base(bench: Bench) -> None:
    """The paper's comparison: hidden states of the base model in place of sentence vectors."""
    from benchmarks.routing.contestants import centred, fitted
    from benchmarks.routing.metrics import auroc_interval, choice
    from benchmarks.tables import interval_cells
    from compllm.build_scripts.manifest import weights_sha256
    from compllm.build_scripts.routing.questions import first_of_each, halves
    from compllm.build_scripts.routing.vectors import base_spaces, sentence_space
    from compllm.paths import base_dir

    # A part of the questions: reading them all with the base model would take hours.
    num_inside, num_outside = bench.arguments.base_each
    ours, theirs = halves(
        [
            *first_of_each((q for q in bench.subjects if q.expert), num_inside),
            *first_of_each((q for q in bench.subjects if not q.expert), num_outside),
        ]
    )
    ours += bench.own_training(num_inside)
    own = bench.sub_queries(5 * num_inside)
    bench.report.summary["base"] = {
        "fitted_on": len(ours),
        "tested_on": len(theirs),
        "in_domain": sum(question.expert is not None for question in theirs),
        "own_sub_queries": len(own),
    }
    checkpoint = base_dir()
    spaces = (sentence_space(bench.encoder), *base_spaces(checkpoint, weights_sha256(checkpoint)))
    for space in spaces:
        samples = [bench.sample(each, space) for each in (ours, theirs, own) if each]
        for is_centred in (False, True):
            fit_on, test_on, *rest = centred(*samples) if is_centred else samples
            for name, head in fitted(fit_on, bench.experts, ("means", "similarity", "logistic")):
                scores = head.scores(test_on.vectors)
                area = auroc_interval(scores, test_on.labels, test_on.is_far)
                bench.report.add(
                    BASE,
                    vectors=space.name + (", centred" if is_centred else ""),
                    router=name,
                    **interval_cells("choice", choice(scores, test_on.labels)),
                    **interval_cells("AUROC_far", area),
                    **_own_cells(head, rest[0] if rest else None),
                )
        bench.tick(f"base model: {space.name}")


def part_scale(bench: Bench) -> None:
    """3 to 32 experts, and whether learning pays there."""
    from benchmarks.intervals import mean
    from benchmarks.routing.pictures import plot_scale
    from benchmarks.routing.scale import COUNTS, difference, run_scale
    from benchmarks.store import ResultStore, source_hash
    from benchmarks.tables import interval_cells
    from compllm.build_scripts.routing import fit
    from compllm.build_scripts.routing.fit import PLAIN
    from compllm.build_scripts.routing.questions import halves

    ours, theirs = halves(bench.subjects)
    fit_on, test_on = bench.sample(ours), bench.sample(theirs)
    code = source_hash([Path(str(fit.__file__))])
    with closing(ResultStore(bench.folder, "scale", code)) as store:
        names, num_draws = SCALE_HEADS, bench.arguments.draws
        found = run_scale(
            fit_on, test_on, names, num_draws, store, lambda: bench.tick("more experts")
        )
    for count in COUNTS:
        for name in names:
            shares, area = found[name, count]
            bench.report.add(
                SCALE,
                experts=count,
                router=name,
                **interval_cells("choice", mean(list(shares.values()))),
                **{"AUROC_%": round(100 * area, 1), "questions": len(shares)},
            )
        values = {name: float(np.mean(list(found[name, count][0].values()))) for name in names}
        plain = max(PLAIN, key=lambda name: values[name])
        learned = max(set(names) - set(PLAIN), key=lambda name: values[name])
        gain = difference(found[learned, count][0], found[plain, count][0])
        bench.report.add(
            GAIN, experts=count, learned=learned, plain=plain, **interval_cells("gain", gain)
        )
    if saves(bench.arguments):
        rows: list[Row] = bench.report.tables[SCALE]
        plot_scale(bench.arguments.out / "eval_router_scale.png", rows)
