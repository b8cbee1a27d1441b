"""Further training of the expert in mathematics: operations as signs, as commands, small tables.

Small numbers are asked as people write them ("81 / 9", "sqrt(81)"), some as `#k` with a parent.
operations.py asks every pair of small numbers and what else lines.py does not.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from compllm.build_scripts.datasets.bank import Bank
from compllm.build_scripts.datasets.forms import forms, tables_of
from compllm.build_scripts.datasets.invented import invent_name
from compllm.build_scripts.datasets.kinds import Kind, Operands, Split
from compllm.build_scripts.datasets.operations import operation_rows
from compllm.build_scripts.datasets.rows import Parents, Row, expert_row, referred
from compllm.build_scripts.datasets.spoken import maybe_spoken

_FACTORS = (
    (12, 18), (8, 12), (10, 15), (6, 9), (20, 30), (14, 21), (4, 6), (16, 24), (9, 12), (5, 7),
)  # fmt: skip
_REFERRED = (
    "root",
    "division",
    "prime",
    "odd",
    "triple",
    "equal",
    "difference",
)  # tables that are asked of a line before, too
_BY_PAIRS = ("addition", "subtraction")  # operations.py asks each pair
_SHARE_HELD = 0.15  # of a table's items, in validation and test


@dataclass(frozen=True, slots=True)
class Table:
    """Items that are asked in each wording of the table of the same name."""

    name: str
    items: Sequence[tuple[int, ...]]
    solve: Callable[..., str]
    exposures: int  # of each item in training


def more_sums(bank: Bank, split: Split, rng: random.Random) -> list[Row]:
    kinds = {kind.name: kind for kind in bank.of("mathematics")}
    rows = operation_rows(bank, split, rng)
    for label, share, fewest in (("signs", 0.15, 110), ("commands", 0.1, 60)):
        for name, texts in tables_of(label).items():
            if name in _BY_PAIRS:
                continue
            num_items = len(kinds[name].items_of(split))
            count = max(round(share * num_items), fewest) if split == "train" else 4
            rows += [_written(kinds[name], label, texts, split, rng) for _ in range(count)]
    return rows + [each for table in small_tables() for each in _of_table(table, split, rng)]


def _written(kind: Kind, label: str, texts: Sequence[str], split: Split, rng: random.Random) -> Row:
    """An operation as signs ("3 + 5 = ?") or as a command ("Add 3 and 5.")."""
    operands = rng.choice(kind.items_of(split))
    asked: Operands = operands
    parents: Parents = []
    if label == "commands" and rng.random() < 0.5:
        asked, parents = _referred(rng, operands)
    text = _filled(rng.choice(texts), asked)
    if label == "signs":
        text = rng.choice(forms("around_signs")).format(a=text)
    elif rng.random() < 0.2:
        text = rng.choice(forms("before_commands")).format(a=text[0].lower() + text[1:])
    return expert_row("mathematics", f"{kind.name}_{label}", text, kind.answer(operands), parents)


def small_tables() -> tuple[Table, ...]:
    from sympy import isprime

    divided = [(x * y, y) for x in range(1, 13) for y in range(2, 13)]
    remainders = [(x, y) for x in range(3, 31) for y in (3, 4, 5)]
    return (
        Table("division", divided, lambda x, y: str(x // y), 2),
        Table("root", [(x * x,) for x in range(1, 13)], lambda x: str(math.isqrt(x)), 8),
        Table("prime", [(x,) for x in range(2, 61)], lambda x: "yes" if isprime(x) else "no", 2),
        Table("factor", _FACTORS, lambda x, y: str(math.gcd(x, y)), 8),
        Table("remainder_small", remainders, lambda x, y: str(x % y), 1),
        Table("odd", [(x,) for x in range(1, 101)], lambda x: "yes" if x % 2 else "no", 1),
        Table("triple", [(x,) for x in range(1, 21)], lambda x: str(3 * x), 3),
        Table("equal", _equal_or_not(), lambda x, y: "yes" if x == y else "no", 1),
        Table("difference", _apart(), lambda x, y: str(abs(x - y)), 1),
    )


def _equal_or_not() -> list[tuple[int, int]]:
    """Half of them equal."""
    rng = random.Random("equal")
    pairs = [(x, x) for x in range(1, 41)]
    return [*pairs, *((x, rng.choice([y for y in range(1, 41) if y != x])) for x, _ in pairs)]


def _apart() -> list[tuple[int, int]]:
    """Small numbers, the smaller one first as often as not."""
    rng = random.Random("apart")
    return [tuple(rng.sample(range(1, 41), 2)) for _ in range(260)]  # type: ignore[misc]


def _of_table(table: Table, split: Split, rng: random.Random) -> Iterator[Row]:
    texts = forms(table.name, "tables")
    if split == "train" and len(texts) > 3:
        texts = texts[:-1]
    for item in table.items:
        operands = tuple(str(number) for number in item)
        answer = table.solve(*item)
        count = table.exposures if split == "train" else int(rng.random() < _SHARE_HELD)
        for _ in range(count):
            asked: Operands = operands
            parents: Parents = []
            if table.name in _REFERRED and rng.random() < 0.25:
                asked, parents = _referred(rng, operands)
            text = maybe_spoken(rng, _filled(rng.choice(texts), asked), split)
            yield expert_row("mathematics", table.name, text, answer, parents)


def _referred(rng: random.Random, operands: Operands) -> tuple[Operands, Parents]:
    """One operand, or two, as lines of a plan whose questions are about made-up things."""
    places = list(range(len(operands)))
    if len(places) == 2 and rng.random() < 0.5:
        places = [rng.choice(places)]
    questions = {
        place: f"What is {rng.choice(forms('numbers_of_made_up'))} of {invent_name(rng, 'train')}?"
        for place in places
    }
    return referred(rng, operands, questions)


def _filled(text: str, operands: Operands) -> str:
    return text.format(**dict(zip("xyz", operands, strict=False)))
