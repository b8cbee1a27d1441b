"""loops: text that repeats itself is cut, what is meant to repeat is left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compllm.loops import LoopGuard, cut_loop


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("the gold symbol; the gold symbol; the gold symbol; the gold", "the gold symbol"),
        ("return nouns return nouns return nouns return nou", "return nouns"),
        ("El cielo es azul. El cielo es azul. El cielo es azul.", "El cielo es azul."),
        ("It is: A b\nC d\nA b\nC d\nA b\nC d\nA b", "It is: A b\nC d"),
        ("x" * 96, "x"),
        ("so ha" + "ha" * 40, "so ha"),
        ('The answer is "' * 6, "The answer is"),
    ],
)
def test_one_copy_of_a_loop_is_kept(text: str, kept: str) -> None:
    assert cut_loop(text) == kept


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Paris",
        "ha ha ha",
        "1 2 3 4 1 2 3 4 1 2 3 4",
        "0.3333333333333",
        "but but twice; but but twice",
        "A C G T A C G",
    ],
)
def test_text_that_does_not_loop_is_left(text: str) -> None:
    assert cut_loop(text) is None


def test_as_many_equal_responses_as_leaves_are_no_loop() -> None:
    assert cut_loop("no; no; no; no", copies=5) is None
    assert cut_loop("no; no; no; no; no", copies=5) == "no"


def test_a_streamed_loop_ends_with_its_first_copies() -> None:
    guard, said = LoopGuard(), ""
    for character in "the symbol of gold; the gold symbol; the gold symbol; the gold symbol; the":
        said += guard.push(character)
        if guard.is_looping:
            break
    assert guard.is_looping
    assert said == "the symbol of gold; the gold symbol"


@given(st.lists(st.sampled_from(["no", "; ", "26", "the", " ", "Fe", ". "]), max_size=12))
def test_a_stream_without_a_loop_is_said_whole(pieces: list[str]) -> None:
    guard = LoopGuard(copies=13)
    said = "".join(guard.push(piece) for piece in pieces) + guard.push("", is_last=True)
    assert said == "".join(pieces)
