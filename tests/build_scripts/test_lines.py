"""Lines of plans for the expert in mathematics: each answer is right, and no answer is the usual
one."""

from __future__ import annotations

import math
import random
import re
from collections import Counter

import pytest

from compllm.build_scripts.datasets.bank import read_bank
from compllm.build_scripts.datasets.forms import tables_of
from compllm.build_scripts.datasets.lines import line_rows, operations
from compllm.build_scripts.datasets.rows import Row
from compllm.prompts import UNKNOWN


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return line_rows(read_bank(36), "train", random.Random(0))


def filled(row: Row) -> str:
    """The question with each `#k` as the response that the facts give for it."""
    lines = sorted({int(each) for each in re.findall(r"#(\d)", row["question"])})
    text: str = row["question"]
    for line, parent in zip(lines, row["parents"], strict=True):
        text = text.replace(f"#{line}", parent["response"])
    return text


def of_kind(rows: list[Row], kind: str) -> list[tuple[str, str]]:
    return [(filled(row), row["answer"]) for row in rows if row["kind"] == kind]


def test_each_reference_has_its_fact(rows: list[Row]) -> None:
    for row in rows:
        assert len(set(re.findall(r"#\d", row["question"]))) == len(row["parents"])
        assert "#" not in filled(row)


@pytest.mark.parametrize(
    ("kind", "pattern", "solve"),
    [
        ("line_addition", r"Add (\d+) (?:and|to) (\d+)\.", lambda x, y: x + y),
        ("line_subtraction", r"Subtract (\d+) from (\d+)\.", lambda x, y: y - x),
        ("line_subtraction", r"What is (\d+) minus (\d+)\?", lambda x, y: x - y),
        ("line_multiplication", r"What is (\d+) times (\d+)\?", lambda x, y: x * y),
        ("line_half", r"Halve (\d+)\.", lambda x: x // 2),
        ("line_digit_sum", r"Add the digits of (\d+)\.", lambda x: sum(map(int, str(x)))),
        ("line_larger", r"Which is larger, (\d+) or (\d+)\?", max),
        ("line_remainder", r"What is (\d+) mod (\d+)\?", lambda x, y: x % y),
        ("line_solve_sum", r"(?:Solve for|Find) x: x \+ (\d+) = (\d+)\.", lambda x, y: y - x),
        ("line_solve_difference", r"Solve x - (\d+) = (\d+)\.", lambda x, y: x + y),
        ("line_percent", r"Find (\d+)% of (\d+)\.", lambda x, y: x * y // 100),
        ("line_multiple", r"What is the LCM of (\d+) and (\d+)\?", math.lcm),
        ("line_factor", r"What is the HCF of (\d+) and (\d+)\?", math.gcd),
        ("line_average", r"Find the average of (\d+) and (\d+)\.", lambda x, y: (x + y) / 2),
        ("line_sum_of_three", r"Add (\d+), (\d+) and (\d+)\.", lambda *each: sum(each)),
    ],
)  # fmt: skip
def test_the_answers_are_right(rows: list[Row], kind: str, pattern: str, solve) -> None:  # type: ignore[no-untyped-def]
    found = [(re.fullmatch(pattern, text), answer) for text, answer in of_kind(rows, kind)]
    checked = [(match, answer) for match, answer in found if match]
    assert len(checked) >= 10
    for match, answer in checked:
        assert int(answer) == solve(*map(int, match.groups()))


@pytest.mark.parametrize(
    "kind",
    ["line_greater", "line_less", "line_equal", "line_divisible", "line_even", "line_prime"],
)
def test_yes_and_no_come_about_equally_often(rows: list[Row], kind: str) -> None:
    counts = Counter(answer for _, answer in of_kind(rows, kind))
    assert set(counts) == {"yes", "no"}
    assert 0.35 < counts["yes"] / counts.total() < 0.65


def test_a_comparison_of_names_answers_the_name_with_the_wanted_number(rows: list[Row]) -> None:
    thing = r"(\S+(?: acid)?) with (\d+)"
    wants = {
        re.escape(text).replace(r"\{x\}", thing).replace(r"\{y\}", thing): want
        for text, want, _ in tables_of("lines")["names"]
    }
    firsts = 0
    compared = of_kind(rows, "line_names")
    for text, answer in compared:
        pairs = re.findall(thing, text)
        want = next(want for shape, want in wants.items() if re.fullmatch(shape, text))
        chosen = (max if want == "max" else min)(pairs, key=lambda pair: int(pair[1]))
        assert answer == chosen[0]
        firsts += answer == pairs[0][0]
    assert 0.4 < firsts / len(compared) < 0.6


def test_what_no_whole_number_answers_is_not_known(rows: list[Row]) -> None:
    for text, answer in of_kind(rows, "line_division"):
        if match := re.fullmatch(r"What is (\d+) divided by (\d+)\?", text):
            x, y = map(int, match.groups())
            assert answer == (str(x // y) if x % y == 0 else UNKNOWN)


def test_every_operation_has_its_wordings() -> None:
    assert {each.name for each in operations()} | {"names", "stories"} == set(tables_of("lines"))
