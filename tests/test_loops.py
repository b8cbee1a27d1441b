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
        (
            "There are 7 continents: Africa, Antarctica, Australia, North and South America, "
            "Antarctica, Antarctica, Antarctica, Australia, and North and South America.",
            "There are 7 continents: Africa, Antarctica, Australia, North and South America",
        ),
        (
            "The planets are: Earth, Mars, Mercury, Venus, Earth's Moon, Mars, Mercury, Venus, "
            "Earth, Mars, Earth's Moon, Earth, Mars, Earth's Moon, Earth, Mars, Ear",
            "The planets are: Earth, Mars, Mercury, Venus, Earth's Moon",
        ),
        (
            "The continents are Africa, Antarctica, Australia" + ", Antarctica" * 9,
            "The continents are Africa, Antarctica, Australia",
        ),
        (
            "1. Dog\n2. Cat\n3. Bird\n4. Fish\n5. Fish\n6. Bird\n7. Fish\n8. Fish\n9. Fish",
            "1. Dog\n2. Cat\n3. Bird\n4. Fish",
        ),
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
        # Lists whose items may repeat.
        "Paris, France, Lyon, France, Nice, France",
        "Monday, 3 pm, Tuesday, 3 pm, Wednesday, 3 pm, Thursday, 3 pm",
        "iron is a metal, gold is a metal, neon is a gas, argon is a gas, zinc is a metal",
        "heads, tails, heads, heads, tails, heads, tails",
        "AUG, GCC, UUU, AUG, AUG, GCC, UUU, AUG",
        "one, two, three, four, one, two, three, four",
        "1, 2, 3, 5, 1, 1, 2, 3, 1, 5",
        # Poems.
        "Row, row, row your boat,\nGently down the stream.\n"
        "Merrily, merrily, merrily, merrily,\nLife is but a dream.",
        "Water, water, every where,\nAnd all the boards did shrink;\n"
        "Water, water, every where,\nNor any drop to drink.",
        "Let it be\nSpeaking words of wisdom\nLet it be\nWhisper words\nLet it be, let it be",
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


def test_a_streamed_list_waits_with_what_it_has_already() -> None:
    guard, said = LoopGuard(), ""
    for character in "They are: iron, gold, zinc, gold, iron, gold, zinc, gold, iron":
        said += guard.push(character)
        if guard.is_looping:
            break
    assert guard.is_looping
    assert said == "They are: iron, gold, zinc"


@given(st.lists(st.sampled_from(["iron", "gold", "zinc", ", ", "; ", "\n", "1. "]), max_size=12))
def test_a_streamed_list_without_a_loop_is_said_whole(pieces: list[str]) -> None:
    guard = LoopGuard(copies=13)
    said = "".join(guard.push(piece) for piece in pieces) + guard.push("", is_last=True)
    assert said == "".join(pieces)


@given(st.lists(st.sampled_from(["no", "; ", "26", "the", " ", "Fe", ". "]), max_size=12))
def test_a_stream_without_a_loop_is_said_whole(pieces: list[str]) -> None:
    guard = LoopGuard(copies=13)
    said = "".join(guard.push(piece) for piece in pieces) + guard.push("", is_last=True)
    assert said == "".join(pieces)
