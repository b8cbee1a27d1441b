"""Templates of questions in several parts: each plan is valid, and each line of it stands alone."""

from __future__ import annotations

import random
import re

import pytest

from compllm.build_scripts.datasets.bank import read_bank
from compllm.build_scripts.datasets.generators import plan_text
from compllm.build_scripts.datasets.kinds import SPLITS, Split
from compllm.build_scripts.datasets.leaves import Leaves
from compllm.build_scripts.datasets.templates import Templates, templates
from compllm.plan import parse_plan

POINTERS = re.compile(r"\b(its?|that number|this number|the result|the answer|they|them|their)\b")


def drawer(split: Split = "train", seed: int = 0) -> Templates:
    return Templates(Leaves(read_bank(36), split, random.Random(seed)))


def template(start: str) -> tuple[str, ...]:
    return next(each for each in templates() if each[0].startswith(start))


def test_there_are_hundreds_of_different_wordings() -> None:
    texts = [text for text, *_ in templates()]
    assert len(texts) == len(set(texts)) >= 400


def test_each_template_fills_to_a_valid_plan_of_at_most_five_lines() -> None:
    draw = drawer()
    for each in templates():
        asked = draw.filled(each)
        plan = parse_plan(plan_text(asked.steps, asked.parents))
        assert [line.text for line in plan.sub_queries] == list(asked.steps)
        assert 1 <= len(asked.steps) <= 5
        assert "{" not in asked.text + "".join(asked.steps)


def test_no_line_of_a_template_holds_a_pronoun() -> None:
    lines = [line for _, *plan in templates() for line in plan]
    assert not [line for line in lines if POINTERS.search(line)]


def test_a_lower_line_of_a_template_is_about_an_upper_answer_or_a_slot() -> None:
    """A line with neither a slot nor `#k` asks a fixed fact, which the question must name."""
    for text, *lines in templates():
        for line in lines:
            if "{" not in line and "#" not in line:
                last = {word.strip("?.").lower() for word in line.split()[-3:]}
                assert any(word in text.lower() for word in last)


@pytest.mark.parametrize("split", SPLITS)
def test_a_template_of_validation_is_no_template_of_training(split: Split) -> None:
    shapes = {re.sub(r"[^a-z]", "", draw.text.lower()) for draw in _drawn(split)}
    assert len(shapes) > 100


def _drawn(split: Split) -> list:  # type: ignore[type-arg]
    draw = drawer(split)
    return [draw.drawn() for _ in range(200)]


def test_its_after_a_named_thing_is_the_thing_and_after_a_searched_one_the_answer() -> None:
    draw = drawer()
    named = draw.filled(template("Which period contains {e1}?"))
    assert "#" not in "".join(named.steps)
    searched = draw.filled(template("Which element has the symbol {s1}, and what period"))
    assert searched.steps[1] == "What period is #1 in?"
    assert searched.parents == ((), (0,))


def test_a_given_number_gets_no_line_of_its_own() -> None:
    asked = drawer().filled(template("Start with {n1}. Multiply it by {n2} and subtract"))
    assert re.fullmatch(r"Multiply \d+ by \d+\.", asked.steps[0])
    assert re.fullmatch(r"Subtract \d+ from #1\.", asked.steps[1])
