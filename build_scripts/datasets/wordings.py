"""Reads the wording tables: how each kind is asked, and how parts are joined."""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from compllm.build_scripts.datasets.kinds import SPLITS, Split, Wording

_FOLDER = Path(__file__).with_name("wordings")


@dataclass(frozen=True, slots=True)
class Joiner:
    """How parts become one question."""

    prefix: str
    between: str
    last: str
    end: str

    def join(self, parts: list[str], *, are_nouns: bool) -> str:
        """`parts`: noun phrases, or questions with their question mark."""
        text = ""
        for index, part in enumerate(parts):
            joint = self.prefix if index == 0 else self.between
            if index and index == len(parts) - 1:
                joint = self.last
            text += joint.replace("{n}", str(index + 1))
            text += part if are_nouns else _continue(part.removesuffix("?"), text)
        return text + self.end


@dataclass(frozen=True, slots=True)
class Joiners:
    """The joiners of one split."""

    questions: tuple[Joiner, ...]
    nouns: tuple[Joiner, ...]
    ask: tuple[str, ...]  # with {a}
    shared: tuple[tuple[str, str], ...]  # (introduction with {a}, the name of the shared thing)
    # Put together from openings and joints: many, drawn as often as the listed ones. Train alone.
    made_questions: tuple[Joiner, ...] = ()
    made_nouns: tuple[Joiner, ...] = ()
    made_ask: tuple[str, ...] = ()

    def draw(self, rng: random.Random, *, are_nouns: bool) -> Joiner:
        listed, made = (
            (self.nouns, self.made_nouns) if are_nouns else (self.questions, self.made_questions)
        )
        return rng.choice(made if made and rng.random() < 0.5 else listed)

    def draw_ask(self, rng: random.Random) -> str:
        return rng.choice(self.made_ask if self.made_ask and rng.random() < 0.5 else self.ask)


@cache
def read_wordings(domain: str) -> dict[str, tuple[Wording, ...]]:
    """Kind -> its wordings, in the order of the table."""
    return {kind: _wordings(kind, entry) for kind, entry in _read(domain).items()}


@cache
def read_joiners(split: Split) -> Joiners:
    table = _read("joiners")
    return Joiners(
        questions=tuple(Joiner(*each) for each in table["questions"][split]),
        nouns=tuple(Joiner(*each) for each in table["nouns"][split]),
        ask=tuple(table["ask"][split]),
        shared=tuple((intro, name) for intro, name in table["shared"][split]),
        made_questions=_made_questions(table["openings"]) if split == "train" else (),
        made_nouns=_made_nouns(table["requests"]) if split == "train" else (),
        made_ask=_made_ask(table["requests"]) if split == "train" else (),
    )


def _made_questions(parts: dict[str, Any]) -> tuple[Joiner, ...]:
    openings = ("", *parts["train"])
    numbered = [
        Joiner(mark, f"{joint} {mark}", f"{joint} {mark}", "?")
        for mark in parts["numbered"]
        for joint in ("?", ";", ",", "? And")
    ]
    joined = [
        Joiner(opening, between, last, "?")
        for opening in openings
        for between, last in parts["joints"]
    ]
    return (*joined, *numbered * 8)  # a tenth of them or so is numbered


def _made_nouns(parts: dict[str, Any]) -> tuple[Joiner, ...]:
    ends = [(each, ".") for each in parts["train"]] + [(each, "?") for each in parts["asking"]]
    return tuple(
        Joiner(opening, between, last, end)
        for opening, end in ends
        for between, last in parts["joints"]
    )


def _made_ask(parts: dict[str, Any]) -> tuple[str, ...]:
    return (
        *(each + "{a}." for each in parts["train"]),
        *(each + "{a}?" for each in parts["asking"]),
    )


def _wordings(kind: str, entry: dict[str, Any]) -> tuple[Wording, ...]:
    nouns = entry.get("nouns", {})
    return tuple(
        Wording(
            id=f"{kind}/{'noun-' if is_noun else ''}{split}-{index}",
            text=text.removeprefix("!"),
            split=split,
            is_noun=is_noun,
            can_nest=not text.startswith("!"),
        )
        for is_noun, lists in ((False, entry), (True, nouns))
        for split in SPLITS
        for index, text in enumerate(lists.get(split, []))
    )


def _continue(question: str, before: str) -> str:
    """The question's first letter as it stands after `before`."""
    stripped = before.rstrip()
    keeps = not stripped or stripped[-1] in ".?:)-/"
    return question if keeps else question[0].lower() + question[1:]


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
