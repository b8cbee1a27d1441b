"""The questions shipped with the router: a share of each generated topic, and who owns them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from compllm.build_scripts.routing.questions import ORDINARY, Question, read_questions
from compllm.build_scripts.routing.taught import taught_questions, write_taught
from compllm.catalogue import load_catalogue


def many(expert: str | None, topic: str, count: int) -> list[Question]:
    return [Question(f"{topic} {number}?", expert, topic) for number in range(count)]


def test_a_share_of_each_generated_topic_is_written(tmp_path: Path) -> None:
    given = [
        *many("law", "set-law", 250),
        *many("law", "set-law-line", 5),
        *many("law", "example-law", 7),
        *many(None, ORDINARY, 1100),
        *many(None, "astronomy", 9),
    ]
    path = write_taught(tmp_path, given, seed=0)
    kept = read_questions(path)
    assert Counter(each.topic for each in kept) == {
        "set-law": 200,
        "set-law-line": 5,
        ORDINARY: 1000,
    }
    assert set(kept) <= set(given)
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_those_shipped_are_of_the_shipped_experts_and_of_none() -> None:
    names = [expert.name for expert in load_catalogue().experts]
    every = taught_questions(names)
    assert {each.expert for each in every} == {*names, None}
    only = taught_questions(["chemistry"])
    assert {each.expert for each in only} == {"chemistry", None}
    assert len(only) < len(every)
