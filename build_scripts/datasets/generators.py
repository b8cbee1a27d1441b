"""Training sets of the sub-query generator: questions and their plans.

Composites of -P and -All, composites of made-up things in made-up wordings, and single questions as
one-line plans, so that it copies what it reads and does not take apart what is one question.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from compllm.build_scripts.datasets.bank import DOMAINS, Bank
from compllm.build_scripts.datasets.composites import Composer
from compllm.build_scripts.datasets.frames import draw_thing, draw_wording, frame_bank
from compllm.build_scripts.datasets.invented import invent_name, invented_bank, read_invented
from compllm.build_scripts.datasets.kinds import SLOTS, Split, choose
from compllm.build_scripts.datasets.wordings import read_joiners
from compllm.plan import format_plan, make_plan
from compllm.types import SubQuery

_BANKS = 100
_GROUPS = (
    "counts", "things", "questions", "questions", "one_nouns", "one_questions",
    "two_nouns", "two_questions", "three_nouns", "three_questions",
)  # fmt: skip


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
    bank: Bank, rng: random.Random, count: int
) -> dict[str, list[dict[str, Any]]]:
    """-P and -All questions about made-up things, `count` and three times as many, in the bank's
    wordings and in drawn ones. For train: a quarter of them in the bank's.

    A third of -All stand beside independent ones: with fewer, a list's join was copied as it is.
    """
    found: dict[str, list[dict[str, Any]]] = {"p": [], "all": []}
    for number, size in enumerate(_portions(count)):
        drawn_bank = frame_bank(bank, rng, number) if number else invented_bank(bank, "train")
        composer = Composer(drawn_bank, "train", rng, is_hard=True)
        for source, drawn in (
            ("p", composer.parallel(size)),
            ("all", [*composer.dependent(2 * size), *composer.mixed(size)]),
        ):
            records = (
                each.record(f"{source}-invented-{number}", "train", index)
                for index, each in enumerate(drawn)
            )
            found[source] += from_composites(records, source)
    return found


def _portions(count: int) -> list[int]:
    """How many of each bank: the first is the bank with made-up names, the others are drawn anew,
    since a small one has no wording often."""
    first = count // 4
    return [first, *(len(range(start, count, _BANKS)) for start in range(first, first + _BANKS))]


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
    joiners = read_joiners(split)
    if split == "train" and rng.random() < 0.4:
        group = rng.choice(_GROUPS)
        numbers = rng.sample(range(1, 300), 3)
        things = map(str, numbers) if "_" in group else (draw_thing(rng), "", "")
        asked = draw_wording(rng, group).format(**dict(zip(SLOTS, things, strict=True)))
        if asked.endswith("?"):
            return asked, asked
        return joiners.draw_ask(rng).format(a=asked), f"What is {asked}?"
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
    return joiners.draw_ask(rng).format(a=noun), f"What is {noun}?"
