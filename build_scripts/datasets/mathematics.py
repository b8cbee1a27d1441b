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
_DIVISORS = (2, 5, 10)


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
            is_split=is_split, exposures=exposures, dependent=0.42, weight=weight,
            accepts_more=accepts_more,
        )  # fmt: skip

    upto = range(1, _LARGEST + 1)
    return (
        kind(
            "addition", itertools.product(range(1, 61), repeat=2), lambda x, y: x + y, 1.1,
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
            "divisible", _balanced(), lambda x, y: "yes" if Mod(x, y) == 0 else "no", 2.5,
            gives="yes/no", has_divisor=True, accepts_more=_has_divisor,
        ),
        kind(
            "remainder", itertools.product(upto, _DIVISORS), Mod, 1.6, has_divisor=True,
        ),
        kind("next_number", ((x,) for x in upto), lambda x: x + 1, 2.5),
        kind("previous_number", ((x,) for x in upto), lambda x: x - 1, 2.5),
        kind("digit_sum", ((x,) for x in upto), lambda x: sum(digits(x, 10)[1:]), 5),
        kind("maximum", _tuples(3, 700), Max, 1, weight=1.5, accepts_more=_are_different),
        kind("minimum", _tuples(3, 700), Min, 1, weight=1.5, accepts_more=_are_different),
    )  # fmt: skip


def _are_different(operands: Operands) -> bool:
    return all(map(_is_small, operands)) and len(set(operands)) == len(operands)


def _has_divisor(operands: Operands) -> bool:
    return _is_small(operands[0]) and operands[1] in map(str, _DIVISORS)


def _is_small(operand: str) -> bool:
    return operand.isdecimal() and 1 <= int(operand) <= _LARGEST


def _balanced() -> Iterable[tuple[int, int]]:
    """As many multiples as others, or "no" would nearly always be right for ten."""
    for divisor in _DIVISORS:
        for multiple in range(divisor, _LARGEST + 1, divisor):
            yield multiple, divisor
            # Walks through all other last digits.
            yield multiple - 1 - (multiple // divisor) % (divisor - 1), divisor


def _tuples(size: int, count: int) -> list[tuple[int, ...]]:
    """Different numbers, small and large ones mixed as in composites, the same on every run."""
    rng = random.Random(f"tuples {size} {count}")
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        tops = [rng.choice((10, 60, 60, _LARGEST)) for _ in range(size)]
        drawn = tuple(rng.randint(1, top) for top in tops)
        if len(set(drawn)) == size:
            found[drawn] = None
    return list(found)
