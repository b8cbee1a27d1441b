"""Composites: what a plan says follows from the question's own tree."""

from __future__ import annotations

import random

import pytest

from compllm.build_scripts.datasets.bank import Bank, read_bank
from compllm.build_scripts.datasets.composites import Composer, Composite
from compllm.build_scripts.datasets.expressions import Expression, Flattener, leaves
from compllm.build_scripts.datasets.kinds import SPLITS, Split, Wording
from compllm.build_scripts.datasets.wordings import Joiner
from compllm.errors import ConfigError


@pytest.fixture(scope="module")
def bank() -> Bank:
    return read_bank(18)


@pytest.fixture(scope="module")
def drawn(bank: Bank) -> dict[Split, list[Composite]]:
    return {split: Composer(bank, split, random.Random(3)).dependent(60) for split in SPLITS}


def expression(bank: Bank, name: str, text: str, *operands: str | Expression) -> Expression:
    kind = next(kind for kind in bank.kinds if kind.name == name)
    is_noun = not text.endswith("?")
    return Expression(kind, Wording(name, text, "train", is_noun, True), operands)


def test_a_shared_part_is_one_node(bank: Bank) -> None:
    element = expression(bank, "from_symbol", "the element with symbol {x}", "Mg")
    number = expression(bank, "atomic_number", "the atomic number of {x}", element)
    period = expression(bank, "period", "the period of {x}", element)
    whole = expression(bank, "larger", "Which is larger, {x} or {y}?", number, period)
    flattener = Flattener("train")
    assert flattener.add(whole) == 3
    assert [node.text for node in flattener.nodes] == [
        "What is the element with symbol Mg?",
        "What is the atomic number of #1?",
        "What is the period of #1?",
        "Which is larger, #2 or #3?",
    ]
    assert [node.parents for node in flattener.nodes] == [(), (0,), (0,), (1, 2)]
    assert [node.answer for node in flattener.nodes] == ["magnesium", "12", "3", "12"]
    assert (
        whole.text({element: "X"}) == "Which is larger, the atomic number of X or the period of X?"
    )


def test_no_question_can_be_read_in_two_ways(drawn: dict[Split, list[Composite]]) -> None:
    """ "What does doubling A added to B give?" was asked, and one of its two plans called wrong."""
    nested = 0
    for composite in (each for composites in drawn.values() for each in composites):
        reckoned = [node.kind.domain == "mathematics" for node in composite.nodes]
        for place, node in enumerate(composite.nodes):
            for parent in node.parents:
                if reckoned[place] and reckoned[parent]:
                    nested += 1
                    assert not node.wording.is_infix, composite.text
                    assert not composite.nodes[parent].wording.is_infix, composite.text
    assert nested


def test_lines_stand_in_the_order_in_which_the_query_names_them(bank: Bank) -> None:
    number = expression(bank, "atomic_number", "the atomic number of {x}", "neon")
    period = expression(bank, "period", "the period of {x}", "neon")
    text = "How much greater than {y} is {x}?"
    flattener = Flattener("train")
    assert flattener.add(expression(bank, "subtraction", text, number, period)) == 2
    assert [node.text for node in flattener.nodes] == [
        "What is the period of neon?",
        "What is the atomic number of neon?",
        "How much greater than #1 is #2?",
    ]
    assert flattener.nodes[2].operands == ("10", "2")
    assert flattener.nodes[2].parents == (0, 1)


def test_a_value_that_cannot_be_asked_of_ends_the_plan(bank: Bank) -> None:
    number = expression(bank, "atomic_number", "the atomic number of {x}", "neon")
    assert Flattener("train").add(expression(bank, "half", "half of {x}", number)) is not None
    number = expression(bank, "atomic_number", "the atomic number of {x}", "fluorine")
    assert Flattener("train").add(expression(bank, "half", "half of {x}", number)) is None


def test_leaves_are_what_nobody_builds_on() -> None:
    assert leaves([[], [0], [0]]) == [1, 2]
    assert leaves([[], [], [0, 1]]) == [2]
    assert leaves([[], []]) == [0, 1]


def test_numbers_of_held_out_composites_were_never_reckoned_in_training(
    drawn: dict[Split, list[Composite]],
) -> None:
    for split, composites in drawn.items():
        for composite in composites:
            for node in composite.nodes:
                assert node.kind.split_of(node.operands) in (None, split)


def test_node_answers_are_their_parents_operands(drawn: dict[Split, list[Composite]]) -> None:
    for composite in drawn["train"]:
        for node in composite.nodes:
            given = [composite.nodes[parent].answer for parent in node.parents]
            assert set(given) <= set(node.operands)
            assert node.answer == node.kind.answer(node.operands)


def test_each_split_has_all_the_shapes(drawn: dict[Split, list[Composite]]) -> None:
    for composites in drawn.values():
        assert {len(composite.nodes) for composite in composites} >= {2, 3, 4, 5}


class Everything:
    """Contains every composition."""

    def __contains__(self, _: object) -> bool:
        return True


def test_asking_for_too_many_is_an_error_not_a_hang(bank: Bank) -> None:
    composer = Composer(bank, "test", random.Random(0), taken=Everything(), max_failed=1)
    with pytest.raises(ConfigError, match=r"only 0 different .* ask for fewer"):
        composer.dependent(50)


@pytest.mark.parametrize(
    ("joiner", "text"),
    [
        (Joiner("", ", ", ", and ", "?"), "Who is it, is it far, and when?"),
        (Joiner("", "? ", "? ", "?"), "Who is it? Is it far? When?"),
        (Joiner("Tell me: ", "; ", "; ", "?"), "Tell me: Who is it; is it far; when?"),
        (Joiner("First, ", "? Then, ", "? Finally, ", "?"),
         "First, who is it? Then, is it far? Finally, when?"),
        (Joiner("{n}) ", "? {n}) ", "? {n}) ", "?"), "1) Who is it? 2) Is it far? 3) When?"),
    ],
)  # fmt: skip
def test_questions_are_joined_with_the_capitals_of_their_place(joiner: Joiner, text: str) -> None:
    assert joiner.join(["Who is it?", "Is it far?", "When?"], are_nouns=False) == text
