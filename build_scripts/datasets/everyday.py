"""Further training of the sub-query generator: questions as people ask them, with their plans.

Commands ("Multiply A by B."), steps that point back ("Take A. Is that number even?"), several
properties of one thing ("its symbol and its period"), lists of up to five, short forms, ordinary
questions and tasks that stay whole, other languages, and several of these in one question.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from compllm.build_scripts.datasets.bank import DOMAINS, Bank
from compllm.build_scripts.datasets.chains import Chains
from compllm.build_scripts.datasets.forms import facts_of, forms
from compllm.build_scripts.datasets.generators import plan_text
from compllm.build_scripts.datasets.kinds import Split
from compllm.build_scripts.datasets.leaves import Asked, Leaves, lower
from compllm.build_scripts.datasets.ordinary import Ordinary
from compllm.build_scripts.datasets.several import Several
from compllm.build_scripts.datasets.templates import Templates

MAX_STEPS = 5
_MAX_CHARS = 400
_SHARES_KEPT = {"p": 0.15, "all": 0.22, "single": 0.2, "strategyqa": 0.15}


class Everyday:
    """Draws questions of one split. people: ordinary questions, each one line of a plan."""

    def __init__(
        self, bank: Bank, split: Split, rng: random.Random, people: Sequence[str] = ()
    ) -> None:
        leaves = Leaves(bank, split, rng)
        chains, several, plain = Chains(leaves), Several(leaves), Ordinary(leaves, people)
        written = Templates(leaves)
        self._rng = rng
        self._forms: dict[Callable[[], Asked], int] = {  # and how often each is drawn
            written.drawn: 130,
            chains.single: 10, chains.command: 9, chains.sequence: 14, chains.its: 10,
            chains.its_after: 5, several.listed: 12, several.of_several: 6, several.compared: 5,
            several.total: 5, several.short: 5, several.joined: 9, self.pair: 6,
            plain.ordinary: 12, plain.two: 7, plain.half: 8, plain.after: 2, plain.foreign: 5,
            plain.other: 2,
        }  # fmt: skip
        self._paired = (
            chains.single, chains.command, chains.its, chains.its_after, several.compared,
            chains.sequence, written.drawn, written.drawn, written.drawn,
        )  # fmt: skip

    def many(self, count: int) -> list[Asked]:
        """Different questions of at most MAX_STEPS lines, no line of them twice."""
        found: dict[str, Asked] = {}
        while len(found) < count:
            form = self._rng.choices(list(self._forms), list(self._forms.values()))[0]
            asked = form()
            is_repeated = len(set(zip(asked.steps, asked.parents, strict=True))) < len(asked.steps)
            is_short = len(asked.steps) <= MAX_STEPS and len(asked.text) <= _MAX_CHARS
            if is_short and not is_repeated:
                found.setdefault(asked.text, asked)
        return list(found.values())

    def pair(self) -> Asked:
        """Two of the forms in one question."""
        rng = self._rng
        first, second = (rng.choice(self._paired)() for _ in range(2))
        lines, parents = _shifted(second, len(first.steps))
        end = "" if first.text[-1] in ".?!" else rng.choice((".", ";", ""))
        glue, keeps_capital = rng.choice(forms("glues_of_two"))
        said = second.text if keeps_capital else lower(second.text)
        return Asked(first.text + end + glue + said, (*first.steps, *lines),
                     (*first.parents, *parents))  # fmt: skip


def more_plans(
    bank: Bank,
    split: Split,
    rng: random.Random,
    count: int,
    known: Sequence[dict[str, Any]],
    people: Sequence[str],
) -> list[dict[str, Any]]:
    """`count` everyday questions, every single fact's question as it stands, and a share of each
    source of the plans known before (`known`).

    Break has no share: no person's question needs its "return ..." steps.
    """
    facts = _facts(split)
    known_texts = {asked.text for asked in facts}
    drawn = Everyday(bank, split, rng, people).many(count)
    rows = list(_rows([each for each in drawn if each.text not in known_texts], split, "everyday"))
    rows += _rows(facts, split, "facts")
    kept = (row for row in known if row["source"] in _SHARES_KEPT)
    for row in sorted(kept, key=lambda row: str(row["id"])):
        if rng.random() < _SHARES_KEPT[row["source"]]:
            rows.append(row)
    rng.shuffle(rows)
    return rows


def _facts(split: Split) -> list[Asked]:
    """One line each: "Which base pairs with adenine?" was read as a number of pairs without."""
    questions = (
        each for domain in DOMAINS for _, asked in facts_of(domain, split) for each in asked
    )
    return [Asked(question, (question,), ((),)) for question in dict.fromkeys(questions)]


def _rows(drawn: Sequence[Asked], split: Split, source: str) -> Iterator[dict[str, Any]]:
    for index, asked in enumerate(drawn):
        yield {
            "id": f"generator-{source}-{split}-{index:05d}",
            "source": source,
            "question": asked.text,
            "plan": plan_text(asked.steps, asked.parents),
        }


def _shifted(asked: Asked, offset: int) -> tuple[list[str], list[tuple[int, ...]]]:
    """Lines and parents of a plan that stands `offset` lines further down."""

    def moved(found: re.Match[str]) -> str:
        return f"#{int(found[1]) + offset}"

    lines = [re.sub(r"#(\d+)", moved, line) for line in asked.steps]
    return lines, [tuple(parent + offset for parent in above) for above in asked.parents]
