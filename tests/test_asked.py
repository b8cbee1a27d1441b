"""asked: the leaves, and the steps that the query asks in its own words."""

from __future__ import annotations

import pytest

from compllm.asked import asked_ids
from compllm.types import SubQuery


def ids(query: str, *lines: SubQuery) -> tuple[int, ...]:
    above = {parent for line in lines for parent in line.parents}
    return asked_ids(query, lines, [line.id for line in lines if line.id not in above])


NUMBER = SubQuery(1, "What is manganese's atomic number?")
EVEN = SubQuery(2, "Is #1 even?", (1,))


@pytest.mark.parametrize(
    "query",
    [
        "What's manganese's atomic number, and is that number even?",
        "what is manganese's atomic number? Is it even?",
        "Tell me: What is  manganese's atomic number? And is it even?",
    ],
)
def test_a_step_that_the_query_asks_is_asked(query: str) -> None:
    assert ids(query, NUMBER, EVEN) == (1, 2)


@pytest.mark.parametrize(
    "query",
    [
        "Is manganese's atomic number even?",
        "Take manganese's atomic number. Is that number even?",
        "What is manganese's atomic number plus 3?",
    ],
)
def test_a_step_that_is_only_named_is_not(query: str) -> None:
    plus = SubQuery(2, "What is #1 plus 3?", (1,))
    assert ids(query, NUMBER, plus if "plus" in query else EVEN) == (2,)


def test_leaves_are_asked_whatever_the_query_says() -> None:
    assert ids("Both, please.", NUMBER, SubQuery(2, "What is neon?")) == (1, 2)
