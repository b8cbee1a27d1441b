"""Numbers in words: what is written so, and what stays."""

from __future__ import annotations

import pytest

from compllm.build_scripts.datasets.worded import ordinal, worded


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("What is 7 times 8?", "What is seven times eight?"),
        ("Subtract 5 from #1.", "Subtract five from #1."),
        ("12 plus 5", "Twelve plus five"),
        ("Is 115 odd?", "Is one hundred fifteen odd?"),
        ("What is 20 percent of 45?", "What is twenty percent of forty-five?"),
    ],
)
def test_numbers_are_written_in_words(text: str, said: str) -> None:
    assert worded(text) == said


@pytest.mark.parametrize(
    "text",
    [
        "34-12", "What is 20% of 40?", "What is x if 3x = 12?", "12 x 4", "x + 27 = 64",
        "What is 250 plus 3?", "What is half of #12?", "Which element is the lightest?",
    ],
)  # fmt: skip
def test_signs_large_numbers_and_references_stay(text: str) -> None:
    assert worded(text) == text


def test_a_place_is_written_in_digits_or_in_words() -> None:
    assert ordinal(34, in_words=False) == "34th"
    assert ordinal(34, in_words=True) == "thirty-fourth"
    assert ordinal(102, in_words=False) == "102nd"
