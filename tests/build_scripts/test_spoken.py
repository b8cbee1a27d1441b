"""Questions as people type them: the words stay, the splits share no opening."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from compllm.build_scripts.datasets.kinds import SPLITS, Split
from compllm.build_scripts.datasets.spoken import (
    possessive,
    respelled,
    spoken_noun,
    spoken_question,
)

NOUN = "the period of iron"


def nouns(split: Split) -> set[str]:
    return {spoken_noun(random.Random(seed), NOUN, split) for seed in range(300)}


@pytest.mark.parametrize("split", SPLITS)
def test_a_noun_phrase_is_kept_whole(split: Split) -> None:
    assert all(NOUN in text.lower() for text in nouns(split))


@pytest.mark.parametrize(("one", "two"), list(combinations(SPLITS, 2)))
def test_no_split_asks_for_a_noun_phrase_as_another_does(one: Split, two: Split) -> None:
    assert not nouns(one) & nouns(two)


def test_a_question_keeps_its_words() -> None:
    for seed in range(100):
        text = spoken_question(random.Random(seed), "What is the period of iron?", "train")
        assert "the period of iron" in text
        assert text.lower().count("what") == 1


def test_bases_are_respelled_together_small_or_with_hyphens() -> None:
    found = {respelled(random.Random(seed), "A U G") for seed in range(50)}
    assert found == {"AUG", "aug", "A-U-G"}


@pytest.mark.parametrize(
    ("noun", "operands", "said"),
    [
        ("the period of iron", ("iron",), "iron's period"),
        ("the sum of 3 and 5", ("3", "5"), "the sum of 3 and 5"),
        ("twice 3", ("3",), "twice 3"),
    ],
)
def test_a_possessive_stands_where_the_noun_phrase_has_that_form(
    noun: str, operands: tuple[str, ...], said: str
) -> None:
    assert possessive(random.Random(0), noun, operands, share=1.0) == said
