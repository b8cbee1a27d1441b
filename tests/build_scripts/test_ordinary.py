"""Questions for no expert: the generator's, and the router's set of them."""

from __future__ import annotations

import json
import random
from itertools import combinations
from pathlib import Path

import pytest

from compllm.build_scripts.datasets.bank import Bank, read_bank
from compllm.build_scripts.datasets.forms import read_everyday
from compllm.build_scripts.datasets.kinds import SPLITS, Split
from compllm.build_scripts.datasets.leaves import Leaves
from compllm.build_scripts.datasets.ordinary import (
    MAX_CHARS,
    Ordinary,
    ordinary_rows,
    ordinary_texts,
    read_strange,
)
from compllm.build_scripts.routing.questions import ORDINARY
from compllm.errors import ConfigError

PEOPLE = ("Who built the first railway?",)


@pytest.fixture(scope="module")
def bank() -> Bank:
    return read_bank(36)


def ordinary(bank: Bank, split: Split, rng: random.Random) -> Ordinary:
    return Ordinary(Leaves(bank, split, rng), PEOPLE)


def rows(bank: Bank, split: Split, count: int, taken: set[str]) -> list[dict[str, object]]:
    rng = random.Random(f"ordinary {split}")
    return ordinary_rows(ordinary(bank, split, rng), rng, count, taken)


def test_the_routers_rows_are_for_no_expert_and_no_text_comes_twice(bank: Bank) -> None:
    taken: set[str] = set()
    drawn = [row for split in SPLITS for row in rows(bank, split, 100, taken)]
    assert len({row["question"] for row in drawn}) == len(drawn) == 300
    assert {row["expert"] for row in drawn} == {None}
    own = {ORDINARY, f"{ORDINARY}-definition", f"{ORDINARY}-foreign"}
    assert {row["topic"] for row in drawn} == own
    assert rows(bank, "train", 100, set()) == drawn[:100]


def test_the_rows_hold_other_languages_and_texts_that_ask_nothing(bank: Bank) -> None:
    texts = {str(row["question"]) for row in rows(bank, "train", 400, set())}
    assert any(text.startswith("¿") for text in texts)
    assert texts & set(read_everyday()["other"])
    assert texts & set(PEOPLE)


def test_more_rows_than_the_tables_have_texts_is_an_error_with_the_remedy(bank: Bank) -> None:
    rng = random.Random(0)
    drawn = Ordinary(Leaves(bank, "test", rng))
    for way in ("ordinary", "two", "definition", "foreign"):
        setattr(drawn, way, drawn.other)
    with pytest.raises(ConfigError, match=r"--ordinary 50: the tables give \d+ ordinary texts"):
        ordinary_rows(drawn, rng, 50, set())


@pytest.mark.parametrize("form", ["ordinary", "definition", "foreign", "other"])
def test_a_question_for_no_expert_stays_one_line(bank: Bank, form: str) -> None:
    drawn = [getattr(ordinary(bank, "train", random.Random(n)), form)() for n in range(100)]
    assert {len(asked.steps) for asked in drawn} == {1}
    assert not any("{" in asked.text for asked in drawn)


def test_two_ordinary_questions_are_two_lines_and_a_follow_up_names_the_answer(bank: Bank) -> None:
    drawn = ordinary(bank, "train", random.Random(0))
    assert {len(drawn.two().steps) for _ in range(50)} == {2, 3}
    assert all("#1" in drawn.after().steps[1] for _ in range(50))


def test_a_held_out_wording_is_in_no_training_text(bank: Bank) -> None:
    held = set(read_everyday()["other"][5::6])
    train = {ordinary(bank, "train", random.Random(n)).other().text for n in range(300)}
    test = {ordinary(bank, "test", random.Random(n)).other().text for n in range(300)}
    assert test == held
    assert not train & held


def subject_file(folder: Path) -> Path:
    path = folder / "subjects.jsonl"
    lines = [
        {"question": f"Which {subject.removeprefix('college_')} is number {n}?", "subject": subject}
        for subject in ("jurisprudence", "college_chemistry")
        for n in range(12)
    ]
    lines.append({"question": "Which of the following is a law?", "subject": "jurisprudence"})
    lines.append({"question": "x" * MAX_CHARS + "?", "subject": "jurisprudence"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_peoples_questions_are_short_and_in_one_split_only(tmp_path: Path) -> None:
    texts = ordinary_texts(subject_file(tmp_path))
    assert sorted(len(each) for each in texts.values()) == [3, 3, 6]
    assert all("jurisprudence" in text for each in texts.values() for text in each)
    for one, two in combinations(SPLITS, 2):
        assert not set(texts[one]) & set(texts[two])


def test_what_an_expert_does_not_know_is_of_its_own_subjects(tmp_path: Path) -> None:
    strange = read_strange(subject_file(tmp_path))
    assert len(strange("chemistry", "train")) == 6
    assert not set(strange("chemistry", "train")) & set(strange("chemistry", "validation"))
    assert strange("biology", "train") == strange("chemistry", "test") == []


def test_without_a_file_there_are_no_questions_of_people() -> None:
    assert ordinary_texts(None) == {"train": [], "validation": [], "test": []}
    assert read_strange(None)("chemistry", "train") == []
