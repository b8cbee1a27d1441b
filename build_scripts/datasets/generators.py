"""Training sets of the sub-query generator: questions and their plans.

Composites of -P and -All, composites of made-up things, and single questions as one-line plans, so
that it copies what it reads and does not take apart what is one question.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from compllm.build_scripts.datasets.bank import DOMAINS, Bank
from compllm.build_scripts.datasets.composites import Composer
from compllm.build_scripts.datasets.invented import invent_name, invented_bank, read_invented
from compllm.build_scripts.datasets.kinds import Split, choose
from compllm.build_scripts.datasets.wordings import read_joiners
from compllm.plan import format_plan, make_plan
from compllm.types import SubQuery


def plan_text(steps: Sequence[str], parents: Sequence[Sequence[int]]) -> str:
    """The plan as the generator writes it. `parents` are 0-based. Raises PlanError."""
    sub_queries = [
        SubQuery(index, text, tuple(parent + 1 for parent in above))
        for index, (text, above) in enumerate(zip(steps, parents, strict=True), start=1)
    ]
    return format_plan(make_plan(sub_queries).sub_queries).removesuffix("\n")


def from_composites(records: Iterable[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    return [
        {
            "id": f"generator-{record['id']}",
            "source": source,
            "question": record["question"],
            "plan": plan_text(record["steps"], record["parents"]),
        }
        for record in records
    ]


def invented_composites(
    bank: Bank, split: Split, rng: random.Random, count: int
) -> dict[str, list[dict[str, Any]]]:
    """-P and -All questions about made-up things: names of no element, quantities nobody knows."""
    composer = Composer(invented_bank(bank, split), split, rng)
    return {
        source: from_composites(
            (each.record(f"{source}-invented", split, index) for index, each in enumerate(drawn)),
            source,
        )
        for source, drawn in (
            ("p", composer.parallel(count)),
            ("all", composer.dependent(count)),
        )
    }


def singles(bank: Bank, split: Split, rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Questions that need no decomposition: the plan is the question, whatever wraps it."""
    found: dict[str, str] = {}
    while len(found) < count:  # invented names alone would give thousands
        question, line = _single(bank, split, rng)
        found.setdefault(question, line)
    return [
        {
            "id": f"generator-single-{split}-{index:04d}",
            "source": "single",
            "question": question,
            "plan": plan_text([line], [[]]),
        }
        for index, (question, line) in enumerate(found.items())
    ]


def _single(bank: Bank, split: Split, rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.35:
        table = read_invented(split)
        name = invent_name(rng, split)
        if rng.random() < 0.6:
            question = rng.choice(table["questions"]).format(e=name)
            return question, question
        noun = rng.choice(table["facts"] + table["counts"]).format(e=name)
    else:
        kind = choose(rng, bank.of(rng.choice(DOMAINS)))
        wording = rng.choice(kind.in_split(split))
        operands = rng.choice([item for item in kind.items if kind.belongs(item, split)])
        if not wording.is_noun:
            return wording.question(operands), wording.question(operands)
        noun = wording.fill(operands)
    return rng.choice(read_joiners(split).ask).format(a=noun), f"What is {noun}?"
