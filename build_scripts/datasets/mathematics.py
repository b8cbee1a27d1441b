"""The mathematics kinds: few operations, over the numbers that composites bring; answers by SymPy.

The operands of validation and test are not in train, except for squares, which are a table to
learn. Divisors are those that the last digit decides: a small model does not learn the others from
a few hundred examples.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable

from compllm.build_scripts.datasets.kinds import Kind, Operands
from compllm.build_scripts.datasets.wordings import read_wordings

_LARGEST = 210  # atomic masses and molecular weights stay below
_DIVISORS = ("2", "5", "10")


def mathematics_kinds() -> tuple[Kind, ...]:
    from sympy import Integer, Max, Min, Mod
    from sympy.ntheory.digits import digits

    wordings = read_wordings("mathematics")

    def kind(
        name: str,
        items: Iterable[tuple[int, ...]],
        solve: Callable[..., object],
        exposures: float,
        *,
        gives: str = "number",
        weight: float = 1.0,
        has_divisor: bool = False,
        is_split: bool = True,
        accepts_more: Callable[[Operands], bool] | None = None,
    ) -> Kind:
        written = tuple(tuple(map(str, item)) for item in items)
        takes = ("number",) * len(written[0])
        return Kind(
            name, "mathematics", (takes[0], "divisor") if has_divisor else takes, gives, written,
            lambda *operands: str(solve(*map(Integer, operands))), wordings[name],
            is_split=is_split, exposures=exposures, dependent=0.45, weight=weight,
            accepts_more=accepts_more,
        )  # fmt: skip

    upto = range(1, _LARGEST + 1)
    by_divisor = [(x, int(y)) for x in upto for y in _DIVISORS]
    return (
        kind(
            "addition", itertools.product(range(1, 61), repeat=2), lambda x, y: x + y, 1.2,
            weight=4,
        ),
        kind(
            "subtraction", ((x, y) for x in range(2, 61) for y in range(1, x)),
            lambda x, y: x - y, 1.5, weight=3,
        ),
        kind(
            "multiplication", itertools.product(range(1, 13), range(2, 10)), lambda x, y: x * y, 10,
        ),
        kind("double", ((x,) for x in range(1, 101)), lambda x: 2 * x, 8, weight=2),
        kind("half", ((x,) for x in range(2, 133, 2)), lambda x: x / 2, 8),
        kind("square", ((x,) for x in range(1, 21)), lambda x: x**2, 20, is_split=False),
        kind("larger", _tuples(2, 900), Max, 1, weight=2, accepts_more=_are_different),
        kind("smaller", _tuples(2, 900), Min, 1, weight=2, accepts_more=_are_different),
        kind(
            "is_greater", _tuples(2, 900), lambda x, y: "yes" if x > y else "no", 1,
            gives="yes/no", weight=1.5, accepts_more=_are_different,
        ),
        kind(
            "is_even", ((x,) for x in upto), lambda x: "yes" if Mod(x, 2) == 0 else "no", 4,
            gives="yes/no", weight=1.5,
        ),
        kind(
            "parity", ((x,) for x in upto), lambda x: "even" if Mod(x, 2) == 0 else "odd", 4,
            gives="parity",
        ),
        kind(
            "divisible", by_divisor, lambda x, y: "yes" if Mod(x, y) == 0 else "no", 1.6,
            gives="yes/no", has_divisor=True,
        ),
        kind("remainder", by_divisor, Mod, 2, has_divisor=True),
        kind("next_number", ((x,) for x in upto), lambda x: x + 1, 2.5),
        kind("previous_number", ((x,) for x in upto), lambda x: x - 1, 2.5),
        kind("digit_sum", ((x,) for x in upto), lambda x: sum(digits(x, 10)[1:]), 5),
        kind("maximum", _tuples(3, 700), Max, 1, weight=1.5, accepts_more=_are_different),
        kind("minimum", _tuples(3, 700), Min, 1, weight=1.5, accepts_more=_are_different),
    )  # fmt: skip


def _are_different(operands: Operands) -> bool:
    are_numbers = all(each.isdecimal() and 1 <= int(each) <= _LARGEST for each in operands)
    return are_numbers and len(set(operands)) == len(operands)


def _tuples(size: int, count: int) -> list[tuple[int, ...]]:
    """Different numbers, mostly small as in composites, the same on every run."""
    rng = random.Random(f"tuples {size} {count}")
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        top = rng.choice((10, 60, 60, _LARGEST))
        found[tuple(rng.sample(range(1, top + 1), size))] = None
    return list(found)
