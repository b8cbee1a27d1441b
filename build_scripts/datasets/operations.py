"""What the lines of lines.py leave to chance or leave out, for the expert in mathematics.

Every pair of small numbers is added and subtracted, in signs, commands and questions. Others: the
largest or smallest of up to five, multiples, everyday names and stories, lines that use answers of
everyday questions. sums.py adds these rows to its own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from compllm.build_scripts.datasets.bank import Bank
from compllm.build_scripts.datasets.forms import forms, tables_of
from compllm.build_scripts.datasets.invented import invent_name
from compllm.build_scripts.datasets.kinds import Split
from compllm.build_scripts.datasets.lines import operations
from compllm.build_scripts.datasets.rows import Row, expert_row, referred
from compllm.prompts import UNKNOWN

Numbers = tuple[int, ...]
_LARGEST = 210  # atomic masses and molecular weights stay below
_HELD_ROWS = 6  # of each part in validation and test
_TWO_DIGITS = 80  # pairs of two-digit numbers with a carry, and as many without, a kind
_LARGEST_OF = 400  # rows of the largest or smallest number
_MULTIPLES = 60  # rows of each divisor
_NAMED = 300
_EVERYDAY = 15  # rows of each operation of lines.py
_TOLD = 11  # rows of each story
_SIGNS = {"addition": "plus", "subtraction": "minus"}  # kind -> its questions in [tables]


@dataclass(frozen=True, slots=True)
class _Writer:
    """Puts numbers into a text, as they are or as lines of a plan."""

    bank: Bank
    split: Split
    rng: random.Random

    def row(self, kind: str, text: str, numbers: Numbers, answer: str, shown: int = 0) -> Row:
        """shown: how many operands, drawn at random, stand as `#k`."""
        places = sorted(self.rng.sample(range(len(numbers)), shown))
        questions = {place: self._source(numbers[place]) for place in places}
        asked, parents = referred(self.rng, tuple(map(str, numbers)), questions)
        slots = dict(zip("xyz", asked, strict=False))
        return expert_row("mathematics", kind, text.format(**slots), answer, parents)

    def text(self, name: str) -> str:
        """A wording of [tables]; the last of each is for validation and test."""
        texts = forms(name, "tables")
        return str(self.rng.choice(texts[:-1]) if self.split == "train" else texts[-1])

    def _source(self, number: int) -> str:
        """A question with this answer: a fact, a calculation, an everyday or made-up thing."""
        rng, way = self.rng, self.rng.random()
        sources = self.bank.sources("number", str(number)) if way < 0.5 else []
        if sources:
            kind, operands = rng.choice(sources)
            return rng.choice(kind.in_split(self.split)).question(operands)
        if way > 0.85:
            noun = rng.choice(forms("numbers_of_made_up"))
            return f"What is {noun} of {invent_name(rng, self.split)}?"
        return self.text("counted").format(e=rng.choice(forms("people", "tables")))


def operation_rows(bank: Bank, split: Split, rng: random.Random) -> list[Row]:
    writer = _Writer(bank, split, rng)
    rows = []
    for part in (_pairs, _extremes, _multiples, _named, _everyday, _told):
        made = list(part(writer))
        rows += made if split == "train" else rng.sample(made, _HELD_ROWS)
    return rows


def small_pairs(kind: str) -> list[tuple[int, int]]:
    """One number up to 60, the other up to 20: sums in both orders, no negative difference."""
    pairs = [(x, y) for x in range(1, 61) for y in range(1, 61) if min(x, y) <= 20]
    if kind == "addition":
        return pairs
    return [(x, y) for x, y in pairs if x >= y and y <= 20]


def two_digit_pairs(kind: str) -> list[tuple[int, int]]:
    """With a carry (47 + 38, 52 - 17) as often as without (45 + 12, 45 - 12)."""
    rng = random.Random(f"two digits {kind}")
    every = [(x, y) for x in range(10, 90) for y in range(10, 60) if x > y and x + y < 100]
    groups: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for x, y in every:
        does_carry = x % 10 + y % 10 > 9 if kind == "addition" else x % 10 < y % 10
        groups[does_carry].append((x, y))
    return [pair for group in groups.values() for pair in rng.sample(group, _TWO_DIGITS)]


def _pairs(writer: _Writer) -> Iterator[Row]:
    """Each pair once; half of them with one number or both as `#k`."""
    rng = writer.rng
    for kind, asks in _SIGNS.items():
        for x, y in (*small_pairs(kind), *two_digit_pairs(kind)):
            label = rng.choice(("signs", "commands", "questions"))
            if label == "questions":
                text = writer.text(asks)
            else:
                text = rng.choice(forms(kind, label))
                if label == "signs":
                    text = rng.choice(forms("around_signs")).replace("{a}", text)
            answer = str(x + y if kind == "addition" else x - y)
            shown = rng.choice((0, 0, 1, 2))
            yield writer.row(f"{kind}_{label}", text, (x, y), answer, shown)


def _extremes(writer: _Writer) -> Iterator[Row]:
    """The largest or the smallest of two to five; the numbers are near each other or as long."""
    rng = writer.rng
    for index in range(_LARGEST_OF):
        name, choose = (("most", max), ("least", min))[index % 2]
        low, high = rng.choice(((1, 12), (10, 60), (10, 99), (100, _LARGEST)))
        if rng.random() < 0.4:
            low = rng.randint(1, _LARGEST - 9)
            high = low + 9
        numbers = rng.sample(range(low, high + 1), rng.choice((2, 3, 4, 4, 5)))
        text = writer.text(name).format(l=_listed(list(map(str, numbers)), rng))
        yield expert_row("mathematics", f"{name}_of_several", text, str(choose(numbers)))


def _listed(numbers: Sequence[str], rng: random.Random) -> str:
    *first, last = numbers
    return ", ".join(first) + rng.choice((", ", " and ", " or ")) + last


def _multiples(writer: _Writer) -> Iterator[Row]:
    """As many multiples as others: for ten, 20 is one, and 24 or 15 is none."""
    rng = writer.rng
    for divisor in (2, 3, 4, 5, 10):
        for index in range(_MULTIPLES):
            multiple = divisor * rng.randint(1, 100 // divisor)
            number = multiple + (0 if index % 2 else rng.randint(1, divisor - 1))
            answer = "no" if number % divisor else "yes"
            text = writer.text("ten").replace("{y}", str(divisor))
            shown = int(rng.random() < 0.5)
            yield writer.row("multiple", text, (number,), answer, shown)


def _named(writer: _Writer) -> Iterator[Row]:
    """Which of two everyday or made-up things has more; the first one as often as the second."""
    rng = writer.rng
    for index in range(_NAMED):
        text, wants, table, question = rng.choice(forms("named", "tables"))
        names = _names(table, writer)
        low, high = sorted(rng.sample(range(1, rng.choice((12, 40, _LARGEST)) + 1), 2))
        winner = index % 2
        numbers = [0, 0]
        numbers[winner], numbers[1 - winner] = (high, low) if wants == "max" else (low, high)
        said = [question.format(e=name) for name in names] if rng.random() < 0.8 else []
        asked, parents = referred(rng, tuple(map(str, numbers)), dict(enumerate(said)))
        x, y = (f"{name} with {number}" for name, number in zip(names, asked, strict=True))
        written = text.format(x=x, y=y)
        yield expert_row("mathematics", "named", written, names[winner], parents)


def _names(table: str, writer: _Writer) -> list[str]:
    rng = writer.rng
    if table != "made_up":
        return list(rng.sample(forms(table, "tables"), 2))
    first = second = invent_name(rng, writer.split)
    while second == first:
        second = invent_name(rng, writer.split)
    return [first, second]


def _everyday(writer: _Writer) -> Iterator[Row]:
    """The operations of lines.py, on answers of questions about everyday things too."""
    rng = writer.rng
    for operation in operations():
        for _ in range(_EVERYDAY):
            numbers = operation.draw(rng)
            answer = operation.solve(*numbers)
            if answer == UNKNOWN or answer.startswith("-"):
                continue  # lines.py has these
            shown = max(1, len(numbers) - int(rng.random() < 0.35))
            text = rng.choice(tables_of("lines")[operation.name])
            yield writer.row(f"everyday_{operation.name}", text, numbers, answer, shown)


def _told(writer: _Writer) -> Iterator[Row]:
    """One step about everyday things, with small numbers."""
    rng = writer.rng
    solvers: dict[str, Callable[[int, int], tuple[Numbers, int]]] = {
        "+": lambda x, y: ((x, y), x + y),
        "-": lambda x, y: ((x + y, y), x),
        "*": lambda x, y: ((x, y), x * y),
        "/": lambda x, y: ((x * y, y), x),
    }
    for text, sign in forms("told", "tables"):
        for _ in range(_TOLD):
            top = 12 if sign in "*/" else 20
            numbers, answer = solvers[sign](rng.randint(2, top), rng.randint(2, top))
            yield writer.row("told", text, numbers, str(answer))
