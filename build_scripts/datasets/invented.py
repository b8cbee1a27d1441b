"""Made-up names, questions about them and answers: what nobody can recall has to be copied."""

from __future__ import annotations

import random
import tomllib
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from compllm.build_scripts.datasets.bank import Bank
from compllm.build_scripts.datasets.kinds import Kind, Operands, Split, Wording, pick_split

_STARTS = "Bal Cor Dre Fen Gol Hax Il Jor Kel Lum Mor Nar Ob Pel Quin Ras Sol Tav Ul Vex Yor Zan"
_MIDDLES = ["", "a", "i", "o", "ar", "en", "il", "or", "ub"]
_ENDS = "bek dor fin gar kus lith mar nok pia quel rax sen thas vian wyn zor"


@cache
def read_invented(split: Split) -> dict[str, list[str]]:
    path = Path(__file__).with_name("wordings") / "invented.toml"
    found: dict[str, list[str]] = tomllib.loads(path.read_text(encoding="utf-8"))[split]
    return found


def invent_name(rng: random.Random, split: Split) -> str:
    """A name of this split alone."""
    while True:
        name = rng.choice(_STARTS.split()) + rng.choice(_MIDDLES) + rng.choice(_ENDS.split())
        if pick_split(name) == split:
            return name


def invent_answer(rng: random.Random, split: Split) -> str:
    """What an unknown expert might say: a number, a name, a word, a few words."""
    kind = rng.randrange(5)
    if kind == 0:
        return str(rng.randrange(1, 10 ** rng.randrange(1, 5)))
    name = invent_name(rng, split)
    if kind == 1:
        return name.lower()
    if kind == 2:
        return f"{rng.randrange(2, 99)} {rng.choice(('meters', 'years', 'grams', 'degrees'))}"
    if kind == 3:
        return f"the {rng.choice(('river', 'city', 'king', 'house', 'school'))} of {name}"
    return name


def invented_bank(bank: Bank, split: Split) -> Bank:
    """The bank's wordings about made-up names, beside made-up quantities. Its answers mean nothing:
    it is for plans alone."""
    rng = random.Random(f"invented {split}")
    names = tuple(dict.fromkeys((invent_name(rng, split),) for _ in range(300)))
    # A bare symbol or letter is too short to be taken for a name.
    named = [kind for kind in bank.kinds if kind.takes in (("element",), ("amino",), ("symbol",))]
    return Bank(
        (
            *bank.of("mathematics"),
            *(
                replace(
                    kind, items=names, solve=_solver(kind.name, kind.gives), accepts_more=_is_name
                )
                for kind in named
            ),
            *_quantities(split, names),
        )
    )


def _quantities(split: Split, names: tuple[Operands, ...]) -> list[Kind]:
    table = read_invented(split)
    phrases = [
        (gives, text, field != "questions")
        for gives, field in (("number", "counts"), ("fact", "facts"), ("reply", "questions"))
        for text in table[field]
    ]
    return [
        Kind(
            name=f"invented-{index}",
            domain=("chemistry", "biology")[index % 2],  # a place in the mixture, no more
            takes=("name",),
            gives=gives,
            items=names,
            solve=_solver(text, gives),
            wordings=(
                Wording(
                    f"invented-{index}/{split}", text.replace("{e}", "{x}"), split, is_noun, True
                ),
            ),
        )
        for index, (gives, text, is_noun) in enumerate(phrases)
    ]


def _solver(asked: str, gives: str) -> Callable[[str], str]:
    """Any value of the type, the same for the same question."""

    def solve(name: str) -> str:
        return (
            str(zlib.crc32(f"{asked} {name}".encode()) % 40 + 1)
            if gives == "number"
            else f"{name}a"
        )

    return solve


def _is_name(_operands: Operands) -> bool:
    return True
