"""Wordings put together from words, and kinds that ask with them: for the generator's training.

A generator that has seen forty wordings a thousand times writes one of the forty for a wording that
it has not seen. Of thousands seen once each there is nothing to remember, so it copies. The
answers of these kinds mean nothing.
"""

from __future__ import annotations

import random
import re
import tomllib
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

from compllm.build_scripts.datasets.bank import Bank
from compllm.build_scripts.datasets.invented import invent_name
from compllm.build_scripts.datasets.kinds import Kind, Operands, Wording

_TYPES = ("element", "amino", "codon")  # what composites look for; no more than names of types here
_OPERATIONS = {1: ("one", 6), 2: ("two", 16), 3: ("three", 9)}  # operands -> frames, how many kinds
_SHARE_REAL = 0.5  # of the operations: the bank's own
_WORD = re.compile(r"\{([A-Za-z_]{2,})\}")


@cache
def read_frames() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Frames by group, and words by name."""
    path = Path(__file__).with_name("wordings") / "frames.toml"
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    words: dict[str, list[str]] = {
        name: text[1:].split("|") if text.startswith("|") else text.split()
        for name, text in table["words"].items()
    }
    frames: dict[str, list[str]] = table["frames"]
    return frames, words


def draw_wording(rng: random.Random, group: str) -> str:
    """A wording with its operands still {x}, {y}, {z}."""
    frames, words = read_frames()
    text = _WORD.sub(lambda found: rng.choice(words[found[1]]), rng.choice(frames[group]))
    return re.sub(r"\b([Aa]) (?=[aeio])", r"\1n ", text)


def draw_thing(rng: random.Random) -> str:
    """What a question may be about: a made-up name, letters spelled apart, a number, ..."""
    name = invent_name(rng, "train")
    form = rng.random()
    if form < 0.5:
        return name
    if form < 0.6:
        return name.lower()
    if form < 0.7:
        return " ".join(rng.choices("ACGUTKLMQRZ", k=rng.randint(2, 5)))
    if form < 0.78:
        return str(rng.randint(1, 400))
    if form < 0.86:
        return name[: rng.randint(1, 3)]
    second = invent_name(rng, "train")
    return rng.choice((f"{name} {second}", f"Mount {name}", f"{name.lower()} {second.lower()}"))


def frame_bank(bank: Bank, rng: random.Random, number: int) -> Bank:
    """Some drawn kinds beside half of the bank's own operations, which here take any number."""
    things = tuple(dict.fromkeys((draw_thing(rng),) for _ in range(60)))
    drawn: list[Kind] = []

    def add(
        group: str, domain: str, takes: tuple[str, ...], gives: str, items: tuple[Operands, ...]
    ) -> None:
        text = draw_wording(rng, group)
        is_noun = not text.endswith("?")
        name = f"frame-{number}-{len(drawn)}"
        wording = Wording(f"{name}/train-0", text, "train", is_noun, True)
        solve = _solver(name, gives)
        drawn.append(
            Kind(name, domain, takes, gives, items, solve, (wording,), accepts_more=_anything)
        )

    for index in range(48):
        domain = ("chemistry", "biology")[index % 2]
        group, gives = (
            ("counts", "number"), ("things", _TYPES[index % 3]), ("questions", "reply"),
        )[index // 16]  # fmt: skip
        # A thing is no more of the type that it was found by.
        takes = _TYPES[(index + 1) % 3] if group == "things" else rng.choice(_TYPES)
        add(group, domain, (takes,), gives, things)
    for size, (group, count) in _OPERATIONS.items():
        for _ in range(count):
            items = tuple(
                tuple(str(rng.randint(1, rng.choice((10, 60, 300)))) for _ in range(size))
                for _ in range(12)
            )
            form, gives = rng.choice((("nouns", "number"), ("questions", "reply")))
            add(f"{group}_{form}", "mathematics", ("number",) * size, gives, items)
    real = [kind for kind in bank.of("mathematics") if rng.random() < _SHARE_REAL]
    return Bank((*drawn, *map(_relaxed, real)))


def _relaxed(kind: Kind) -> Kind:
    return replace(
        kind, solve=_solver(kind.name, kind.gives), is_split=False, accepts_more=_anything, weight=1
    )


def _solver(name: str, gives: str) -> Callable[..., str]:
    """Any value of the type, the same for the same question."""

    def solve(*operands: str) -> str:
        value = zlib.crc32(f"{name} {operands}".encode()) % 400 + 1
        return str(value) if gives == "number" else f"{gives} {value}"

    return solve


def _anything(_operands: Operands) -> bool:
    return True
