"""Lines of plans for the expert in mathematics: operations on answers of earlier lines.

What plans contain ("Subtract #2 from #1.", "Is #1 greater than #2?", "Which has more protons, iron
with #1 or copper with #2?") is asked here over the whole range that composites need, with the lines
in any order. Some operands are plain numbers. refresh.py adds these rows to the others.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from compllm.build_scripts.datasets.bank import Bank
from compllm.build_scripts.datasets.forms import read_facts, tables_of
from compllm.build_scripts.datasets.invented import invent_name
from compllm.build_scripts.datasets.kinds import Split
from compllm.build_scripts.datasets.rows import Parents, Row, expert_row, referred
from compllm.build_scripts.datasets.spoken import maybe_spoken
from compllm.build_scripts.datasets.worded import worded
from compllm.prompts import UNKNOWN

_Numbers = tuple[int, ...]
_SHARE_PLAIN = 0.25  # of the rows whose operands are all plain numbers
_SHARE_NAMES_REFERRED = 0.85  # of the comparisons of two names
_SHARE_IN_WORDS = 0.1
_SHARE_PARTLY = 0.4  # of the others: one of two operands is a plain number
_HELD_ROWS = 6  # of each operation in validation and test


@dataclass(frozen=True, slots=True)
class Operation:
    """How to draw the operands, what the answer is, how many rows training has.

    The wordings stand under the same name in the table [lines] of forms.toml.
    """

    name: str
    draw: Callable[[random.Random], _Numbers]
    solve: Callable[..., str]
    count: int
    is_plain: bool = False  # asked of numbers alone: an equation has no `#k` in it


def line_rows(bank: Bank, split: Split, rng: random.Random) -> list[Row]:
    writer = _Writer(bank, split, rng)
    rows = []
    for operation in operations():
        count = operation.count if split == "train" else _HELD_ROWS
        rows += [writer.row(operation) for _ in range(count)]
    count = 1700 if split == "train" else 3 * _HELD_ROWS
    rows += [writer.compared() for _ in range(count)]
    return [*rows, *_stories(split, rng), *_sums(split, rng), *_quotients(split, rng)]


def operations() -> tuple[Operation, ...]:
    from sympy import isprime

    return (
        Operation("addition", _added, lambda x, y: str(x + y), 1800),
        Operation("subtraction", _subtracted, _minus, 2900),
        Operation("multiplication", _multiplied, lambda x, y: str(x * y), 1000),
        Operation("division", _divided, _over, 1000),
        Operation("double", _upto(60), lambda x: str(2 * x), 250),
        Operation("half", lambda rng: (2 * rng.randint(1, 50),), lambda x: str(x // 2), 450),
        Operation("triple", _upto(30), lambda x: str(3 * x), 150),
        Operation("square", _upto(12), lambda x: str(x * x), 150),
        Operation("root", _rooted, _root, 200),
        Operation("digit_sum", _upto(110), lambda x: str(sum(map(int, str(x)))), 500),
        Operation("even", _upto(110), lambda x: _yes(x % 2 == 0), 300),
        Operation("odd", _upto(110), lambda x: _yes(x % 2 == 1), 250),
        Operation("parity", _upto(110), lambda x: "odd" if x % 2 else "even", 250),
        Operation("prime", _maybe_prime, lambda x: _yes(isprime(x)), 1000),
        Operation("greater", _compared, lambda x, y: _yes(x > y), 700),
        Operation("less", _compared, lambda x, y: _yes(x < y), 450),
        Operation("equal", _maybe_equal, lambda x, y: _yes(x == y), 250),
        Operation("divisible", _maybe_divided, lambda x, y: _yes(x % y == 0), 1200),
        Operation("remainder", _with_remainder, lambda x, y: str(x % y), 2200),
        Operation("larger", _compared, lambda x, y: str(max(x, y)), 350),
        Operation("smaller", _compared, lambda x, y: str(min(x, y)), 300),
        Operation("largest", _three, lambda *numbers: str(max(numbers)), 600),
        Operation("smallest", _three, lambda *numbers: str(min(numbers)), 800),
        Operation("next", _upto(110), lambda x: str(x + 1), 120),
        Operation("previous", _upto(110), lambda x: str(x - 1), 120),
        Operation("difference", _subtracted_any_order, lambda x, y: str(abs(x - y)), 600),
        Operation("sum_of_three", _three_small, lambda *numbers: str(sum(numbers)), 300),
        Operation("factor", _with_factor, lambda x, y: str(math.gcd(x, y)), 1200),
        Operation("rounded", _upto(110), lambda x: str(10 * ((x + 5) // 10)), 450),
        Operation("order", _maybe_equal, _order, 700),
        Operation("percent", _percent, lambda x, y: str(x * y // 100), 900),
        Operation("solve_sum", _solved, lambda x, y: str(y - x), 450, is_plain=True),
        Operation("solve_product", _solved_product, lambda x, y: str(y // x), 300, is_plain=True),
        Operation(
            "solve_difference", _solved_difference, lambda x, y: str(x + y), 250, is_plain=True
        ),
        Operation("solve_quotient", _factors, lambda x, y: str(x * y), 150, is_plain=True),
        Operation("cube", _upto(10), lambda x: str(x**3), 150),
        Operation("multiple", _factors, lambda x, y: str(math.lcm(x, y)), 400),
        Operation("quarter", lambda rng: (4 * rng.randint(1, 25),), lambda x: str(x // 4), 150),
        Operation("third", lambda rng: (3 * rng.randint(1, 30),), lambda x: str(x // 3), 150),
        Operation("average", _with_average, lambda x, y: str((x + y) // 2), 350),
    )


class _Writer:
    def __init__(self, bank: Bank, split: Split, rng: random.Random) -> None:
        self._bank, self._split, self._rng = bank, split, rng

    def row(self, operation: Operation) -> Row:
        rng = self._rng
        numbers = operation.draw(rng)
        text = self._text(operation.name)
        asked, parents = self._perhaps_referred(numbers, operation.is_plain)
        question = text.format(**dict(zip("xyz", asked, strict=False)))
        if rng.random() < _SHARE_IN_WORDS:
            question = worded(question)
        if not parents:
            question = maybe_spoken(rng, question, self._split)
        name, answer = f"line_{operation.name}", operation.solve(*numbers)
        return expert_row("mathematics", name, question, answer, parents)

    def compared(self) -> Row:
        """Which of two named things has more: the answer is a name."""
        rng = self._rng
        text, wants, measure = rng.choice(tables_of("lines")["names"])
        names = self._names(measure)
        numbers = _compared(rng)
        is_referred = rng.random() < _SHARE_NAMES_REFERRED
        questions = [f"{measure} {name}?" for name in names] if is_referred else []
        asked, parents = referred(rng, tuple(map(str, numbers)), dict(enumerate(questions)))
        x, y = (f"{name} with {number}" for name, number in zip(names, asked, strict=True))
        chosen = (max if wants == "max" else min)(numbers)
        answer = names[numbers.index(chosen)]
        return expert_row("mathematics", "line_names", text.format(x=x, y=y), answer, parents)

    def _text(self, name: str) -> str:
        texts = tables_of("lines")[name]
        return str(self._rng.choice(texts))

    def _names(self, measure: str) -> tuple[str, str]:
        rng = self._rng
        if "bases" in measure:
            first, second = ("".join(rng.choices("ACGT", k=rng.randint(3, 6))) for _ in "12")
            return first, second
        kind = "num_codons" if "codons" in measure or "molecular" in measure else "atomic_number"
        items = [name for (name,) in next(k for k in self._bank.kinds if k.name == kind).items]
        if kind == "atomic_number":
            items += read_facts()["heavy"]
        if rng.random() < 0.15:
            return invent_name(rng, self._split).lower(), invent_name(rng, self._split).lower()
        first, second = rng.sample(items, 2)
        return first, second

    def _perhaps_referred(
        self, numbers: _Numbers, is_plain: bool
    ) -> tuple[tuple[str, ...], Parents]:
        """Plain numbers, or lines of a plan; now and then one of two stays a plain number."""
        rng = self._rng
        places = list(range(len(numbers)))
        if is_plain or rng.random() < _SHARE_PLAIN:
            places = []
        elif len(numbers) == 2 and rng.random() < _SHARE_PARTLY:
            places = [rng.choice(places)]
        questions = {place: self._source(numbers[place]) for place in places}
        return referred(rng, tuple(map(str, numbers)), questions)

    def _source(self, number: int) -> str:
        """A question with this answer; of a made-up thing where no fact has it."""
        rng = self._rng
        sources = self._bank.sources("number", str(number))
        if not sources or rng.random() < 0.2:
            noun = rng.choice(tables_of("forms")["numbers_of_made_up"])
            return f"What is {noun} of {invent_name(rng, self._split)}?"
        name = rng.choice(sorted({kind.name for kind, _ in sources}))
        kind, operands = rng.choice([each for each in sources if each[0].name == name])
        return rng.choice(kind.in_split(self._split)).question(operands)


def _stories(split: Split, rng: random.Random) -> Iterator[Row]:
    """One step about everyday things: "I have 12 apples and eat 5. How many are left?"."""
    steps: dict[str, tuple[Callable[[random.Random], _Numbers], Callable[[int, int], str]]] = {
        "-": (_subtracted, _minus),
        "+": (_added, lambda x, y: str(x + y)),
        "*": (_multiplied, lambda x, y: str(x * y)),
        "/": (_divided, _over),
    }
    for text, sign in tables_of("lines")["stories"]:
        draw, solve = steps[sign]
        for _ in range(16 if split == "train" else 1):
            x, y = draw(rng)
            if (answer := solve(x, y)) != UNKNOWN:
                question = text.format(x=x, y=y)
                question = worded(question) if rng.random() < _SHARE_IN_WORDS else question
                yield expert_row("mathematics", "story", question, answer)


def _sums(split: Split, rng: random.Random) -> Iterator[Row]:
    """Half of all sums of a number up to 60 and one up to 20, for training: of drawn ones alone
    some were never seen and answered wrongly."""
    for x, y in itertools.product(range(2, 61), range(1, 21)):
        if split == "train" and rng.random() < 0.5:
            text = rng.choice(tables_of("lines")["addition"])
            yield expert_row("mathematics", "line_addition", text.format(x=x, y=y), str(x + y))


def _quotients(split: Split, rng: random.Random) -> Iterator[Row]:
    """All divisions of the times table, remainders of numbers up to 90, and products up to 20 times
    12, twice each, for training."""
    tables: tuple[tuple[str, list[tuple[int, int]], Callable[[int, int], str]], ...] = (
        ("division", [(x * y, y) for x in range(1, 13) for y in range(1, 13)], _over),
        ("remainder", list(itertools.product(range(3, 91), (*range(3, 10),))), _left_over),
        ("multiplication", list(itertools.product(range(13, 21), range(2, 13))), _times),
        ("multiplication", list(itertools.product(range(2, 13), range(13, 21))), _times),
    )
    for name, pairs, solve in tables:
        for x, y in pairs * 2 if split == "train" else ():
            text = rng.choice(tables_of("lines")[name])
            yield expert_row("mathematics", f"line_{name}", text.format(x=x, y=y), solve(x, y))


def _upto(top: int) -> Callable[[random.Random], _Numbers]:
    return lambda rng: (rng.randint(1, top),)


def _added(rng: random.Random) -> _Numbers:
    large, small = rng.randint(1, 60), rng.randint(1, 20)
    if rng.random() < 0.15:
        large, small = rng.randint(20, 99), rng.randint(10, 60)
    return (large, small) if rng.random() < 0.5 else (small, large)


def _subtracted(rng: random.Random) -> _Numbers:
    x, y = rng.randint(2, 60), rng.randint(1, 20)
    if rng.random() < 0.12:
        x, y = rng.randint(20, 99), rng.randint(10, 60)
    # A result below zero is learnt of small numbers: their pairs are few.
    is_small = max(x, y) <= 20
    return (x, y) if x >= y or rng.random() < (0.6 if is_small else 0.03) else (y, x)


def _subtracted_any_order(rng: random.Random) -> _Numbers:
    x, y = _subtracted(rng)
    return (x, y) if rng.random() < 0.5 else (y, x)


def _minus(x: int, y: int) -> str:
    return str(x - y) if x >= y else f"-{y - x}"


def _multiplied(rng: random.Random) -> _Numbers:
    if rng.random() < 0.15:
        return rng.randint(13, 40), rng.randint(2, 5)
    return rng.randint(1, 12), rng.randint(1, 12)


def _divided(rng: random.Random) -> _Numbers:
    x, y = rng.randint(1, 12), rng.randint(2, 12)
    if rng.random() < 0.3:
        x, y = rng.randint(1, 50), rng.choice((2, 2, 3, 5))
    if rng.random() < 0.06:
        return x * y + rng.randint(1, y - 1) if y > 1 else x, y
    return x * y, y


def _over(x: int, y: int) -> str:
    return UNKNOWN if x % y else str(x // y)


def _left_over(x: int, y: int) -> str:
    return str(x % y)


def _times(x: int, y: int) -> str:
    return str(x * y)


def _rooted(rng: random.Random) -> _Numbers:
    root = rng.randint(1, 12)
    return (root * root + (rng.randint(1, 2 * root) if rng.random() < 0.15 else 0),)


def _root(x: int) -> str:
    root = math.isqrt(x)
    return str(root) if root * root == x else UNKNOWN


def _maybe_prime(rng: random.Random) -> _Numbers:
    from sympy import isprime, prime

    if rng.random() < 0.45:
        return (int(prime(rng.randint(1, 18))),)
    if rng.random() < 0.6:  # 51 looks like a prime
        return (rng.choice([each for each in range(9, 100, 2) if not isprime(each)]),)
    return (rng.randint(1, 61),)


def _compared(rng: random.Random) -> _Numbers:
    """Two different numbers, near each other as often as not."""
    x = rng.randint(1, rng.choice((10, 40, 60, 210)))
    y = max(1, x + rng.choice((-1, 1)) * rng.randint(1, 4))
    if rng.random() < 0.6:
        y = rng.randint(1, rng.choice((10, 40, 60, 210)))
    return (x, y) if x != y else (x, y + 1)


def _maybe_equal(rng: random.Random) -> _Numbers:
    x = rng.randint(1, 60)
    return (x, x) if rng.random() < 0.5 else _compared(rng)


def _order(x: int, y: int) -> str:
    return "equal" if x == y else "greater" if x > y else "less"


def _with_factor(rng: random.Random) -> _Numbers:
    """Two numbers with a common factor more often than chance would have it."""
    factor = rng.choice((1, 2, 3, 4, 5, 6, 6, 7, 8, 9, 10, 12))
    top = max(2, min(10, 100 // factor))
    x, y = rng.sample(range(1, top + 1), 2)
    return factor * x, factor * y


def _percent(rng: random.Random) -> _Numbers:
    share = rng.choice((5, 10, 10, 15, 20, 20, 25, 30, 40, 50, 50, 60, 75))
    step = 100 // math.gcd(100, share)
    return share, step * rng.randint(1, 200 // step)


def _solved(rng: random.Random) -> _Numbers:
    x = rng.randint(1, rng.choice((20, 20, 40)))
    return x, x + rng.randint(1, 40)


def _solved_product(rng: random.Random) -> _Numbers:
    x = rng.randint(2, 12)
    return x, x * rng.randint(1, 12)


def _solved_difference(rng: random.Random) -> _Numbers:
    return rng.randint(1, 20), rng.randint(1, 40)


def _factors(rng: random.Random) -> _Numbers:
    return rng.randint(2, 12), rng.randint(2, 12)


def _with_average(rng: random.Random) -> _Numbers:
    """Two numbers whose average is whole."""
    x = rng.randint(1, 40)
    y = x + 2 * rng.randint(1, 10)
    return (x, y) if rng.random() < 0.5 else (y, x)


def _maybe_divided(rng: random.Random) -> _Numbers:
    y = rng.choice((2, 3, 4, 5, 10, 10, 6, 7, 8, 9))
    if rng.random() < 0.5:
        return y * rng.randint(1, 100 // y), y
    x = rng.randint(1, 99)
    return (x, y) if x % y else (x + 1, y)


def _with_remainder(rng: random.Random) -> _Numbers:
    y = rng.choice((2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9, 10))
    return rng.randint(1, 100 if y in (2, 5, 10) else 80), y


def _three(rng: random.Random) -> _Numbers:
    top = rng.choice((20, 60, 210))
    return tuple(rng.sample(range(1, top + 1), 3))


def _three_small(rng: random.Random) -> _Numbers:
    return tuple(rng.randint(1, 15) for _ in range(3))


def _yes(is_so: bool) -> str:
    return "yes" if is_so else "no"
