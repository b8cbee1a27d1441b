import pytest
from hypothesis import given
from hypothesis import strategies as st

from compllm.routing.asking import asking_part

ACIDS = "An acid gives protons to a base. Strong acids do so in full. "


def can_read(text: str) -> bool:
    return len(text.split()) <= 12


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is an acid?", "What is an acid?"),
        (f"{ACIDS * 9}What is 12 times 3?", "What is 12 times 3?"),
        (f"{ACIDS * 9}what is 12 times 3", "what is 12 times 3"),
        (f"{ACIDS * 9}And 12 times 3?", "And 12 times 3?"),
        (f"What is 12 times 3?\n{ACIDS * 9}", "What is 12 times 3?"),
        (f"Summarize this text. {ACIDS * 9}", "Summarize this text."),
        (f"{ACIDS * 9}Now tell me 12 times 3. {ACIDS}", "Now tell me 12 times 3."),
        (f"Is it sour? {ACIDS * 9}What is 12 times 3?", "Is it sour? What is 12 times 3?"),
        ("Is it an acid or is it not an acid? " * 5, "Is it an acid or is it not an acid?"),
        ("acids and bases " * 9 + "and what is 12 times 3?", "what is 12 times 3?"),
        (f"{ACIDS * 9}十二乘三等于多少\uff1f", "十二乘三等于多少\uff1f"),
        (f"{ACIDS * 9}That is all of it", "That is all of it"),
        ("acids " * 40, "acids " * 10),
    ],
)
def test_of_a_long_text_the_part_that_asks_is_read(text: str, expected: str) -> None:
    assert asking_part(text, can_read).strip() == expected.strip()


@given(st.text("ab ?.\n什\uff1f", max_size=200))
def test_whatever_the_text_its_part_can_be_read(text: str) -> None:
    part = asking_part(text, lambda each: len(each) <= 20)
    assert len(part) <= 20
    assert bool(part.strip()) == bool(text.strip())
