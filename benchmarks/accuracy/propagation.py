"""How an error travels: one parent's response is replaced by a wrong one of its kind.

What does not depend on it is gold, what does is answered anew by the experts, on gold routes. The
same run without the replacement is the comparison: the difference is the wrong response's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from benchmarks.accuracy.contestants import gold_routes, query_of
from benchmarks.accuracy.lab import Lab
from benchmarks.accuracy.ladder import run_plan
from benchmarks.accuracy.metrics import is_exact
from benchmarks.accuracy.records import Composite
from benchmarks.accuracy.runner import Outcome, Work, run_records
from benchmarks.intervals import mean
from benchmarks.report import Row
from benchmarks.tables import interval_cells
from compllm.types import Plan

Pool = dict[str, tuple[str, ...]]  # kind -> answers that it has somewhere


def answer_pool(records: Sequence[Composite]) -> Pool:
    pool: dict[str, set[str]] = {}
    for record in records:
        for kind, answer in zip(record.kinds, record.answers, strict=True):
            pool.setdefault(kind, set()).add(answer)
    return {kind: tuple(sorted(answers)) for kind, answers in pool.items()}


def choose_flip(record: Composite, pool: Pool, seed: int) -> tuple[int, str] | None:
    """A node with children and a wrong response of its kind; None where there is no such node."""
    rng = random.Random(f"{seed} {record.id}")
    leaves = set(record.leaves)
    options = [
        (sub_query.id, tuple(wrong for wrong in pool[kind] if wrong != record.gold[sub_query.id]))
        for sub_query, kind in zip(record.plan.sub_queries, record.kinds, strict=True)
        if sub_query.id not in leaves
    ]
    options = [(node, wrong) for node, wrong in options if wrong]
    if not options:
        return None
    node, wrong = rng.choice(options)
    return node, rng.choice(wrong)


def descendants(plan: Plan, node: int) -> set[int]:
    """All that depend on the node, without itself."""
    found: set[int] = set()
    for sub_query in plan.sub_queries:  # parents come first
        if any(parent == node or parent in found for parent in sub_query.parents):
            found.add(sub_query.id)
    return found


async def propagate(
    lab: Lab, records: Sequence[Composite], work: Work, seed: int
) -> tuple[list[Composite], list[Outcome]]:
    """The records that can be flipped, and both answers of each."""
    pool = answer_pool(records)
    flips = {record.id: choose_flip(record, pool, seed) for record in records}
    chosen = [record for record in records if flips[record.id] is not None]

    async def answer(record: Composite) -> Outcome:
        flip = flips[record.id]
        assert flip is not None
        node, wrong = flip
        below, routes = descendants(record.plan, node), gold_routes(lab, record)
        given = {at: text for at, text in record.gold.items() if at not in below}
        query = query_of(record)
        right = await run_plan(lab, query, record.plan, routes, given)
        flipped = await run_plan(lab, query, record.plan, routes, {**given, node: wrong})
        return {"node": node, "wrong": wrong, "right": right.answer, "flipped": flipped.answer}

    store = lab.store("propagation", seed=seed, pool=pool)
    return chosen, await run_records("error propagation", chosen, answer, store, work)


def propagation_rows(
    records: Sequence[Composite], outcomes: Sequence[Outcome], seed: int
) -> list[Row]:
    """By set: exact with the right response, with the wrong one, and how often it changed
    anything."""
    rows: list[Row] = []
    for name in dict.fromkeys(record.set for record in records):
        pairs = [(r, o) for r, o in zip(records, outcomes, strict=True) if r.set == name]
        right = [is_exact(o["right"], r.answer) for r, o in pairs]
        flipped = [is_exact(o["flipped"], r.answer) for r, o in pairs]
        changed = [not is_exact(o["flipped"], o["right"]) for _, o in pairs]
        rows.append(
            {
                "set": name,
                "questions": len(pairs),
                **interval_cells("exact, right parent", mean(right, seed)),
                **interval_cells("exact, wrong parent", mean(flipped, seed)),
                **interval_cells("answer changed", mean(changed, seed)),
            }
        )
    return rows
