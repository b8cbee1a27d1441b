"""Ordinary questions: people's, from a file of questions with subjects, and from tables of things.

The generator learns from them to leave one question whole and to take two apart (everyday.py), an
expert to say that it does not know (refresh.py), router and gate which questions are no expert's.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compllm.build_scripts.datasets.forms import forms, read_everyday
from compllm.build_scripts.datasets.kinds import Split
from compllm.build_scripts.datasets.leaves import Asked, Leaves, apart, one, upper
from compllm.build_scripts.datasets.spoken import spoken_question
from compllm.build_scripts.datasets.wordings import read_joiners
from compllm.build_scripts.routing.questions import ORDINARY, Question, halves, read_subjects
from compllm.errors import ConfigError

MAX_CHARS = 110  # longer ones are texts of exams, not what people type
_SLOT = re.compile(r"\{([a-z]+)\}")
# Of one and of two ordinary questions, definitions, foreign and other texts in the router's set.
_SHARES = (10, 3, 8, 6, 2)
_SHARE_DEFINITIONS = 0.15  # of the generator's ordinary questions
_MAX_TRIES = 200  # for each text of that set
_NUM_STRANGE = {"train": 90, "validation": 15, "test": 0}


def read_people(path: Path | None) -> tuple[list[Question], list[Question]]:
    """Short questions of the file in two halves: to fit on, and to hold out. Raises ConfigError."""
    if path is None:
        return [], []
    fitted, held = halves(read_subjects(path))
    return [each for each in fitted if _is_short(each)], [each for each in held if _is_short(each)]


def read_strange(path: Path | None) -> Callable[[str, Split], Sequence[str]]:
    """(domain, split) -> questions of the domain's own subjects, which no expert was taught.
    Raises ConfigError."""
    fitted, held = read_people(path)

    def strange(domain: str, split: Split) -> Sequence[str]:
        texts = sorted(
            {q.text for q in (fitted if split == "train" else held) if q.expert == domain}
        )
        count = min(_NUM_STRANGE[split], len(texts))
        return random.Random(f"strange {domain} {split}").sample(texts, count)

    return strange


def ordinary_texts(path: Path | None) -> dict[Split, list[str]]:
    """People's questions that are for no expert, by split: the first half of each subject is for
    training, the other half for validation and test. Raises ConfigError."""
    fitted, held = (
        sorted({q.text for q in half if q.expert is None}) for half in read_people(path)
    )
    return {"train": fitted, "validation": held[::2], "test": held[1::2]}


class Ordinary:
    """Draws questions that no expert owns. people: real ones of the split, each one line."""

    def __init__(self, leaves: Leaves, people: Sequence[str] = ()) -> None:
        self._leaves = leaves
        self._split = leaves.split
        self._rng = leaves.rng
        self._people = people

    def ordinary(self) -> Asked:
        """One question or task, which stays whole."""
        rng = self._rng
        if self._people and rng.random() < 0.45:
            question = rng.choice(self._people)
            return one(question, question)
        if rng.random() < _SHARE_DEFINITIONS:
            return self.definition()
        text = self._of_table("questions" if rng.random() < 0.6 else "tasks")
        if text.endswith("?") and rng.random() < 0.4:
            return one(spoken_question(rng, text, self._split), text)
        return one(text, text)

    def two(self) -> Asked:
        """Two or three ordinary questions in one."""
        return self._joined([self._question() for _ in range(self._rng.choice((2, 2, 2, 3)))])

    def half(self) -> Asked:
        """Ordinary questions and questions of the trained domains in one."""
        rng = self._rng
        questions = [self._question() for _ in range(rng.choice((1, 1, 2)))]
        questions += [self._leaves.leaf_or_sum().question for _ in range(rng.choice((1, 1, 2)))]
        rng.shuffle(questions)
        return self._joined(questions)

    def after(self) -> Asked:
        """An ordinary question, then another one about its answer."""
        rng = self._rng
        first, said, line, *pronouns = rng.choice(read_everyday()["follow"])
        first = self._filled(first)
        said = said.format(it=rng.choice(pronouns))
        joint = rng.choice(forms("joints_ordinary"))
        text = first.removesuffix("?") + joint.format(b=said, B=upper(said))
        return Asked(text, (first, line), ((), (0,)))

    def definition(self) -> Asked:
        """What a thing or an idea of a science is: no expert was taught it."""
        text = self._of_table("definitions")
        return one(text, text)

    def foreign(self) -> Asked:
        """A question in another language."""
        text = self._of_table("foreign")
        return one(text, text)

    def other(self) -> Asked:
        """A text that asks nothing: a greeting, a few signs."""
        text = self._leaves.pick(read_everyday()["other"])
        return one(text, text)

    def _question(self) -> str:
        if self._people and self._rng.random() < 0.3:
            return self._rng.choice(self._people)
        return self._of_table("questions")

    def _joined(self, questions: list[str]) -> Asked:
        joiner = read_joiners(self._split).draw(self._rng, are_nouns=False)
        return apart(joiner.join(questions, are_nouns=False), questions)

    def _of_table(self, name: str) -> str:
        return self._filled(self._leaves.pick(read_everyday()[name]))

    def _filled(self, text: str) -> str:
        names = read_everyday()["names"]
        return _SLOT.sub(lambda found: self._rng.choice(names[found[1]]), text)


def ordinary_rows(
    drawn: Ordinary, rng: random.Random, count: int, taken: set[str]
) -> list[dict[str, Any]]:
    """Rows for the router, for no expert: `count` questions, tasks, two questions in one,
    definitions, foreign and other texts.

    Definitions and foreign texts are topics of their own: each is a class for the router. taken:
    texts of the splits before; none comes twice, and the new ones join them. Raises ConfigError
    where the tables have no `count` texts.
    """
    ways = (
        (drawn.ordinary, ORDINARY), (drawn.two, ORDINARY),
        (drawn.definition, f"{ORDINARY}-definition"), (drawn.foreign, f"{ORDINARY}-foreign"),
        (drawn.other, ORDINARY),
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    for _ in range(_MAX_TRIES * count):
        if len(rows) == count:
            break
        draw, topic = rng.choices(ways, _SHARES)[0]
        text = draw().text
        if text not in taken:
            taken.add(text)
            rows.append({"question": text, "expert": None, "topic": topic})
    if len(rows) < count:
        raise ConfigError(
            f"--ordinary {count}: the tables give {len(rows)} ordinary texts for one of the "
            "splits; give a smaller number, or more questions with --subjects"
        )
    return rows


def _is_short(question: Question) -> bool:
    text = question.text
    return (
        len(text) <= MAX_CHARS
        and text.endswith("?")
        and "\n" not in text
        and "_" not in text
        and "following" not in text
    )
