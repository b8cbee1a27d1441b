"""Questions in several parts from templates: hundreds of wordings, whose slots are filled here.

A template is a list of texts: the question, then the lines of its plan. The slots stand in the
tables `plans_*.toml`, which explain them. everyday.py draws from them for the generator.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from compllm.build_scripts.datasets.leaves import Asked, Leaves, lower, plural, upper
from compllm.prompts import REFERENCE

_TABLES = tuple(
    f"plans_{name}"
    for name in (
        *("single", "steps", "parts", "relations"),
        *("more_steps", "more_parts", "more_relations"),
        *("third_steps", "third_parts", "third_relations"),
        *("fourth_steps", "fourth_parts", "fifth", "sixth"),
    )
)
# Trained on the least so far; the sixth is small, so it is drawn from twice as often.
_NEWEST = ("plans_fifth", "plans_sixth", "plans_sixth")
_SHARE_NEWEST = 0.75
_SLOT = re.compile(r"\{([A-Za-z]+)(\d?)\}")
_NOUNS = {"N": "number", "M": "number", "K": "number", "F": None, "G": None, "H": None}
_QUESTIONS = {"Q": None, "R": None, "T": None, "A": "number", "B": "number"}
_THINGS = {"e": "element", "a": "amino", "c": "codon", "s": "symbol"}
_NUMERIC = {
    "x": ("number", "count", "mass", "period", "group", "electrons"),
    "y": ("codons", "weight"),
}
_KIND_OF = {"x": "element", "y": "amino"}
_SHARE_CAPITAL = 0.7  # of the questions that would begin small
_SHARE_MADE_UP = 0.06  # of elements and amino acids, so that names are copied


@cache
def templates(tables: tuple[str, ...] = _TABLES) -> tuple[tuple[str, ...], ...]:
    """Every template of the tables, in their order."""
    found: list[tuple[str, ...]] = []
    for name in tables:
        path = Path(__file__).with_name("wordings") / f"{name}.toml"
        found += map(tuple, tomllib.loads(path.read_text(encoding="utf-8"))["plans"])
    return tuple(found)


class Templates:
    """Draws filled templates of one split."""

    def __init__(self, leaves: Leaves) -> None:
        self._leaves = leaves

    def drawn(self) -> Asked:
        is_newest = self._leaves.rng.random() < _SHARE_NEWEST
        asked = self.filled(self._leaves.pick(templates(_NEWEST if is_newest else _TABLES)))
        if self._leaves.rng.random() < _SHARE_CAPITAL:
            return replace(asked, text=upper(asked.text))
        return asked

    def filled(self, template: tuple[str, ...]) -> Asked:
        """One question of the template; all slots get different fillings."""
        filling: dict[str, str] = {}
        text, *lines = template
        for letters, number in _SLOT.findall(" ".join(template)):
            self._fill(filling, letters, number)

        def value(match: re.Match[str]) -> str:
            return filling[match[1] + match[2]]

        steps = tuple(_SLOT.sub(value, line) for line in lines)
        return Asked(_SLOT.sub(value, text), steps, tuple(map(_parents, steps)))

    def _fill(self, filling: dict[str, str], letters: str, number: str) -> None:
        """Fill the slot and its other spellings: {e1} and {E1}, {Q} and {q}, {x1} and {xs1}."""
        if letters + number in filling:
            return
        taken = set(filling.values())
        while True:
            found = self._one(letters, number)
            if not taken & set(found.values()):
                filling.update(found)
                return

    def _one(self, letters: str, number: str) -> dict[str, str]:
        leaves, rng = self._leaves, self._leaves.rng
        kind = letters[0].lower()
        if not number:
            return self._phrase(letters)
        if kind in _KIND_OF:
            return self._property(kind, "n" in letters, number)
        if letters == "n":
            return {f"n{number}": str(rng.randint(2, 20))}
        if letters == "z":
            return {f"z{number}": str(rng.randint(1, 36))}
        makers: dict[str, Callable[[], str]] = {
            "d": leaves.strand,
            "u": leaves.compound,
            "w": leaves.calculation,
        }
        if letters in makers:
            return {letters + number: makers[letters]()}
        is_made_up = kind in "ea" and rng.random() < _SHARE_MADE_UP
        name = leaves.invented().lower() if is_made_up else leaves.thing(_THINGS[kind])
        return {f"{kind}{number}": name, f"{kind.upper()}{number}": upper(name)}

    def _phrase(self, letter: str) -> dict[str, str]:
        if letter in _NOUNS:
            return {letter: str(self._leaves.leaf(_NOUNS[letter], is_noun=True).noun)}
        question = self._leaves.leaf(_QUESTIONS[letter.upper()]).question.removesuffix("?")
        return {letter.upper(): question, letter.lower(): lower(question)}

    def _property(self, kind: str, is_number: bool, number: str) -> dict[str, str]:
        """A property of an element or an amino acid under all its slots."""
        names = self._leaves.attributes(_KIND_OF[kind])
        if is_number:
            names = [name for name in names if name.split()[-1] in _NUMERIC[kind]]
        name, n = self._leaves.rng.choice(names), "n" * is_number
        many, big = plural(name), kind.upper()
        return {
            f"{kind}{n}{number}": name, f"{big}{n}{number}": upper(name),
            f"{kind}{n}s{number}": many, f"{big}{n}s{number}": upper(many),
        }  # fmt: skip


def _parents(line: str) -> tuple[int, ...]:
    return tuple(sorted({int(found) - 1 for found in REFERENCE.findall(line)}))
