"""Pairs of small numbers, several numbers, names and stories: answers by another way of working
them out, and no answer is the usual one."""

from __future__ import annotations

import operator
import random
import re
from collections import Counter
from collections.abc import Callable

import pytest

from compllm.build_scripts.datasets.bank import Bank, read_bank
from compllm.build_scripts.datasets.forms import forms
from compllm.build_scripts.datasets.lines import operations
from compllm.build_scripts.datasets.operations import (
    operation_rows,
    small_pairs,
    two_digit_pairs,
)
from compllm.build_scripts.datasets.rows import Row
from compllm.build_scripts.datasets.sums import more_sums

# The words that decide the operation, and what it is. The first that occurs counts.
WORDS: tuple[tuple[str, Callable[[int, int], int]], ...] = (
    (r"less than|[Hh]ow many more|-|minus|difference|gap|left|remains|separates", operator.sub),
    (r"[Ss]ubtract|[Tt]ake|[Dd]ecrease|[Rr]educe", operator.sub),
    (r"\+|plus|sum|Sum|total|make|amount|more than|[Aa]dd|[Ii]ncrease|together", operator.add),
)


@pytest.fixture(scope="module")
def bank() -> Bank:
    return read_bank(36)


@pytest.fixture(scope="module")
def rows(bank: Bank) -> list[Row]:
    return operation_rows(bank, "train", random.Random(0))


def filled(row: Row) -> str:
    """The question with each `#k` as the response that the facts give for it."""
    lines = sorted({int(each) for each in re.findall(r"#(\d)", row["question"])})
    text: str = row["question"]
    for line, parent in zip(lines, row["parents"], strict=True):
        text = text.replace(f"#{line}", parent["response"])
    return text


def numbers_in(text: str) -> list[int]:
    return [int(each) for each in re.findall(r"\d+", text)]


def of_pairs(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row["kind"].startswith(("addition_", "subtraction_"))]


def test_each_reference_has_its_fact_and_its_line_is_one_to_five(rows: list[Row]) -> None:
    for row in rows:
        lines = re.findall(r"#(\d)", row["question"])
        assert len(set(lines)) == len(row["parents"])
        assert set(map(int, lines)) <= set(range(1, 6))
        texts = [row["question"], *(parent["question"] for parent in row["parents"])]
        assert not any("{" in text for text in texts)


def test_sums_and_differences_are_right(rows: list[Row]) -> None:
    for row in of_pairs(rows):
        text = filled(row)
        solve = next(solve for words, solve in WORDS if re.search(words, text))
        first, second = numbers_in(text)
        if solve is operator.sub:
            first, second = max(first, second), min(first, second)
        assert row["answer"] == str(solve(first, second)), text


def test_every_pair_in_range_is_asked_and_half_of_them_of_lines_before(rows: list[Row]) -> None:
    pairs = of_pairs(rows)
    asked = Counter(
        (row["kind"].partition("_")[0], tuple(sorted(numbers_in(filled(row))))) for row in pairs
    )
    for kind in ("addition", "subtraction"):
        assert all(asked[kind, tuple(sorted(pair))] for pair in small_pairs(kind))
    assert 0.45 < sum(bool(row["parents"]) for row in pairs) / len(pairs) < 0.55


def test_pairs_stay_in_range() -> None:
    assert set(small_pairs("addition")) >= {(60, 20), (20, 60), (1, 1)}
    assert (45, 12) in small_pairs("subtraction")
    assert not [pair for pair in small_pairs("subtraction") if pair[0] < pair[1]]
    carries = [x % 10 < y % 10 for x, y in two_digit_pairs("subtraction")]
    assert sum(carries) * 2 == len(carries)


def test_the_most_and_the_least_of_several_are_right(rows: list[Row]) -> None:
    sizes = set()
    for row in rows:
        if row["kind"].endswith("_of_several"):
            ordered = sorted(numbers_in(row["question"]))
            sizes.add(len(ordered))
            place = 0 if row["kind"].startswith("least") else -1
            assert row["answer"] == str(ordered[place])
    assert sizes == {2, 3, 4, 5}


def test_multiples_are_right_and_as_frequent_as_others(rows: list[Row]) -> None:
    answers: dict[int, Counter[str]] = {}
    for row in rows:
        if row["kind"] == "multiple":
            number, divisor = numbers_in(filled(row))
            is_multiple = number in range(divisor, 101, divisor)
            assert row["answer"] == ("yes" if is_multiple else "no")
            answers.setdefault(divisor, Counter())[row["answer"]] += 1
    assert set(answers) == {2, 3, 4, 5, 10}
    assert all(counts["yes"] == counts["no"] for counts in answers.values())


def test_the_name_has_the_wanted_number_and_the_first_is_right_half_the_time(
    rows: list[Row],
) -> None:
    low = re.compile("younger|fewer|lower|lighter|shorter|less|smaller|least")
    named = [row for row in rows if row["kind"] == "named"]
    firsts = 0
    for row in named:
        text = filled(row)
        pairs = re.findall(r"(the \w+ \w+|the \w+|\w+) with (\d+)", text)
        chosen = (min if low.search(text) else max)(pairs, key=lambda pair: int(pair[1]))
        assert row["answer"] == chosen[0], text
        firsts += text.index(f"{chosen[0]} with") == min(text.index(f"{e[0]} with") for e in pairs)
    assert firsts * 2 == len(named)


def test_stories_are_right(rows: list[Row]) -> None:
    """Each answer, put back into its story, gives the number that the story began with."""
    back: dict[str, Callable[[int, int, int], bool]] = {
        "+": lambda x, y, answer: answer - y == x,
        "-": lambda x, y, answer: answer + y == x,
        "*": lambda x, y, answer: answer % y == 0 and answer // y == x,
        "/": lambda x, y, answer: answer * y == x,
    }
    shapes = [
        (re.escape(text).replace(r"\{x\}", r"(?P<x>\d+)").replace(r"\{y\}", r"(?P<y>\d+)"), sign)
        for text, sign in forms("told", "tables")
    ]
    told = [row for row in rows if row["kind"] == "told"]
    assert len(shapes) >= 25
    for row in told:
        match, sign = next(
            (match, sign)
            for shape, sign in shapes
            if (match := re.fullmatch(shape, row["question"]))
        )
        assert back[sign](int(match["x"]), int(match["y"]), int(row["answer"]))


def test_each_operation_is_asked_of_everyday_answers(rows: list[Row]) -> None:
    counts = Counter(row["kind"] for row in rows)
    assert all(counts[f"everyday_{each.name}"] for each in operations())
    yes_or_no = Counter(
        row["answer"]
        for row in rows
        if row["kind"].startswith("everyday_") and row["answer"] in ("yes", "no")
    )
    assert 0.35 < yes_or_no["yes"] / yes_or_no.total() < 0.65


def test_the_last_wording_of_each_table_is_held_out_of_training(bank: Bank) -> None:
    for split in ("train", "test"):
        texts = {row["question"] for row in operation_rows(bank, split, random.Random(1))}
        is_held = any(text.startswith("Which is the highest of these numbers") for text in texts)
        assert is_held == (split == "test")


def test_other_sets_get_these_rows_too_and_the_same_seed_gives_the_same(bank: Bank) -> None:
    drawn = more_sums(bank, "validation", random.Random(0))
    assert {"named", "told", "multiple"} <= {row["kind"] for row in drawn}
    assert drawn == more_sums(bank, "validation", random.Random(0))
