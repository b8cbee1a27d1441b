"""The mathematics kinds: few operations, over the numbers that composites bring; answers by SymPy.

Some are tables to learn, as people learn them: small sums and differences, twice, half, times
table, squares, neighbours, even and odd. All their numbers are in train, in wordings of its own.
The others are rules (comparing, remainders, digits): operands of validation and test are not in
train.

Sums and differences were rules at first. With a training loss of 0.06 the expert still got 3 to 4
of 10 differences right whose pair it had never seen: it does not learn to subtract at this size,
only which pair gives what.

Ranges were wider at first (sums and differences to 60, tables to 100 and 210) and one example an
item: a 135M model got 63 % of the validation questions right, with halves, parities and
differences near chance. So each range is now what composites need of it (atomic numbers to 36,
counts to 20), and the exposures of an item went up with what was saved. One operand of a sum or a
difference is at most 20: two large ones are rare in composites, and take most of the pairs.
Divisors are those that the last digit decides.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from compllm.build_scripts.datasets.kinds import Kind, Operands, Wording
from compllm.build_scripts.datasets.wordings import read_wordings

_LARGEST = 210  # atomic masses and molecular weights stay below
_TOP = 40  # of sums and differences: atomic numbers go to 36
_SMALL = 20  # one operand of a sum, and what is taken away
_TABLE_TOP = 100  # of neighbours, even and odd, last digits
_DIVISORS = (2, 5, 10)
_UPTO = range(1, _TABLE_TOP + 1)


def mathematics_kinds() -> tuple[Kind, ...]:
    kind = partial(_kind, read_wordings("mathematics"))
    table = partial(kind, is_split=False)
    return (
        *_sums_and_products(table),
        *_comparisons(kind),
        *_divisions(kind, table),
        *_neighbours_and_digits(kind, table),
        *_extremes(kind),
    )


def _kind(
    wordings: Mapping[str, tuple[Wording, ...]],
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
    """`solve` takes SymPy integers."""
    from sympy import Integer

    written = tuple(tuple(map(str, item)) for item in items)
    takes = ("number",) * len(written[0])
    return Kind(
        name, "mathematics", (takes[0], "divisor") if has_divisor else takes, gives, written,
        lambda *operands: str(solve(*map(Integer, operands))), wordings[name],
        is_split=is_split, exposures=exposures, dependent=0.42, weight=weight,
        accepts_more=accepts_more,
    )  # fmt: skip


def _sums_and_products(table: Callable[..., Kind]) -> Iterator[Kind]:
    pairs = [(x, y) for x in range(1, _TOP + 1) for y in range(1, _TOP + 1)]
    sums = (pair for pair in pairs if min(pair) <= _SMALL)
    differences = ((x, y) for x, y in pairs if y < x and y <= _SMALL)
    products = itertools.product(range(1, 13), range(2, 10))
    yield table("addition", sums, lambda x, y: x + y, 2, weight=4)
    yield table("subtraction", differences, lambda x, y: x - y, 5, weight=3)
    yield table("multiplication", products, lambda x, y: x * y, 5)
    yield table("double", _singly(range(1, 51)), lambda x: 2 * x, 7, weight=2)
    yield table("half", _singly(range(2, 51, 2)), lambda x: x / 2, 14)
    yield table("square", _singly(range(1, 13)), lambda x: x**2, 40)


def _comparisons(kind: Callable[..., Kind]) -> Iterator[Kind]:
    from sympy import Max, Min

    yield kind("larger", _tuples(2, 1300), Max, 1, weight=2, accepts_more=_are_different)
    yield kind("smaller", _tuples(2, 1200), Min, 1, weight=2, accepts_more=_are_different)
    yield kind(
        "is_greater", _tuples(2, 1000), lambda x, y: "yes" if x > y else "no", 1,
        gives="yes/no", weight=1.5, accepts_more=_are_different,
    )  # fmt: skip


def _divisions(kind: Callable[..., Kind], table: Callable[..., Kind]) -> Iterator[Kind]:
    from sympy import Mod

    yield table(
        "is_even", _singly(_UPTO), lambda x: "yes" if Mod(x, 2) == 0 else "no", 6,
        gives="yes/no", weight=1.5,
    )  # fmt: skip
    yield table(
        "parity", _singly(_UPTO), lambda x: "even" if Mod(x, 2) == 0 else "odd", 6, gives="parity"
    )
    yield table(
        "divisible", _balanced(), lambda x, y: "yes" if Mod(x, y) == 0 else "no", 2,
        gives="yes/no", has_divisor=True, accepts_more=_has_divisor,
    )  # fmt: skip
    yield kind("remainder", itertools.product(_UPTO, _DIVISORS), Mod, 1.2, has_divisor=True)


def _neighbours_and_digits(kind: Callable[..., Kind], table: Callable[..., Kind]) -> Iterator[Kind]:
    from sympy.ntheory.digits import digits

    yield table("next_number", _singly(_UPTO), lambda x: x + 1, 2.5)
    yield table("previous_number", _singly(_UPTO), lambda x: x - 1, 2)
    yield kind("digit_sum", _singly(_UPTO), lambda x: sum(digits(x, 10)[1:]), 7)


def _extremes(kind: Callable[..., Kind]) -> Iterator[Kind]:
    """Of three numbers."""
    from sympy import Max, Min

    yield kind("maximum", _tuples(3, 1300), Max, 1, weight=1.5, accepts_more=_are_different)
    yield kind("minimum", _tuples(3, 1000), Min, 1, weight=1.5, accepts_more=_are_different)


def _singly(numbers: Iterable[int]) -> Iterator[tuple[int]]:
    return ((number,) for number in numbers)


def _are_different(operands: Operands) -> bool:
    return all(map(_is_small, operands)) and len(set(operands)) == len(operands)


def _has_divisor(operands: Operands) -> bool:
    return _is_small(operands[0], _TABLE_TOP) and operands[1] in map(str, _DIVISORS)


def _is_small(operand: str, top: int = _LARGEST) -> bool:
    return operand.isdecimal() and 1 <= int(operand) <= top


def _balanced() -> Iterable[tuple[int, int]]:
    """As many multiples as others, or "no" would nearly always be right for ten."""
    for divisor in _DIVISORS:
        for multiple in range(divisor, _TABLE_TOP + 1, divisor):
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
