"""A user's questions and facts: what is read, and which line is named where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compllm.build_scripts.own.examples import (
    check_contradictions,
    described,
    key_of,
    read_examples,
)
from compllm.build_scripts.own.facts import Fact, questions_of, read_facts, write_dataset
from compllm.catalogue import load_catalogue
from compllm.errors import ConfigError

ROOMS = [(f"Where is room {n}?", f"floor {n}") for n in range(1, 6)]


def file(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def csv(rows: str = "") -> str:
    return "question,answer\n" + "".join(f"{q},{a}\n" for q, a in ROOMS) + rows


def test_facts_are_read_from_csv_and_json_lines(tmp_path: Path) -> None:
    text = "answer,question,wordings\n" + "".join(
        f"{a},{q},Room {q[-2]}?| Find {q[-2]}.\n" for q, a in ROOMS
    )
    facts = read_facts(file(tmp_path, "rooms.csv", text))
    assert facts[0] == Fact("Where is room 1?", "floor 1", ("Room 1?", "Find 1."))
    lines = "".join(
        json.dumps({"question": f.question, "answer": f.answer, "wordings": f.wordings}) + "\n"
        for f in facts
    )
    assert read_facts(file(tmp_path, "rooms.jsonl", lines + "\n")) == facts


def test_a_fact_that_is_there_twice_counts_once(tmp_path: Path) -> None:
    facts = read_facts(file(tmp_path, "rooms.csv", csv("where is ROOM 1,Floor 1\n")))
    assert len(facts) == len(ROOMS)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("f.csv", "", "line 1 has no column 'question'"),
        ("f.csv", "question,answer\n", "has 0 facts: give at least 5"),
        ("f.csv", csv("Where is room 1?,floor 9\n"), "line 7 contradicts line 2: .*'floor 1' and"),
        ("f.csv", csv("Where is room 9?\n"), "line 7 has 1 columns, the header 2"),
        ("f.csv", csv("Where is room 9?,\n"), "line 7: answer is '': expected a text"),
        ("f.csv", csv('"Where,x\n'), "line 7 is not CSV"),
        ("f.csv", "question,reply\na,b\n", "line 2 has the unknown key 'reply'"),
        ("f.jsonl", '{"question": "a", "answer": "b"}\n{oops\n', "line 2 is not a JSON object"),
        ("f.jsonl", "[1]\n", "line 1 is not a JSON object"),
        ("f.jsonl", '{"question": "a", "answer": 3}\n', "line 1: answer is 3: expected a text"),
        (
            "f.jsonl",
            '{"question": "a", "answer": "b", "wordings": ["c"]}\n'
            '{"question": "c?", "answer": "d"}\n',
            "line 2 contradicts line 1",
        ),
        ("f.txt", "What?\n", "neither .jsonl nor .csv"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(
    tmp_path: Path, name: str, text: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        read_facts(file(tmp_path, name, text))


def test_held_out_wordings_are_not_among_the_trained_ones(tmp_path: Path) -> None:
    facts = [Fact("Where is room 1?", "floor 1", ("Room 1?", "Find 1.")), Fact("Why?", "so")]
    first = write_dataset(facts, tmp_path)
    assert write_dataset(facts, tmp_path) == first
    records = {
        split: [json.loads(line) for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()]
        for split in ("train", "validation")
    }
    trained = {key_of(each["question"]) for each in records["train"]}
    held_out = [(each["question"], each["answer"]) for each in records["validation"]]
    assert held_out == [("Find 1.", "floor 1"), ("Can you say why?", "so")]
    assert not {key_of(question) for question, _ in held_out} & trained
    assert {"where is room 1", "room 1", "why"} <= trained


def test_the_routers_questions_of_facts_are_unique_and_bounded() -> None:
    facts = [Fact(f"Where is room {n}?", "x", (f"Room {n}?",)) for n in range(150)]
    assert len(questions_of(facts)) == 150
    assert questions_of([Fact("Why?", "a", ("why", "How?"))]) == ("Why?", "How?")


def test_examples_are_read_a_line_each(tmp_path: Path) -> None:
    text = "# of law\nWhat is a tort?\n\nwhat is a TORT\n" + "".join(f"Q{n}?\n" for n in range(4))
    found = read_examples(file(tmp_path, "law.txt", text))
    assert found == ("What is a tort?", "Q0?", "Q1?", "Q2?", "Q3?")
    with pytest.raises(ConfigError, match="has 1 questions: give at least 5"):
        read_examples(file(tmp_path, "few.txt", "Why?\n"))
    with pytest.raises(ConfigError, match="cannot read"):
        read_examples(tmp_path / "absent.txt")


def test_a_description_becomes_questions_about_its_parts() -> None:
    found = described("contract law, torts")
    assert {"contract law", "What is torts?"} <= set(found)
    with pytest.raises(ConfigError, match="has 1 parts: name two"):
        described("law")


def test_a_question_that_another_expert_has_is_refused() -> None:
    catalogue = load_catalogue()
    with pytest.raises(ConfigError, match="belongs to expert chemistry"):
        check_contradictions(catalogue, ["what is the atomic number of IRON"])
    with pytest.raises(ConfigError, match="belongs to no expert"):
        check_contradictions(catalogue, [catalogue.out_of_domain[0]])
    check_contradictions(catalogue, ["What is a tort?"])
