"""`compllm eval --questions FILE`, on the scripted backend; and the rule of what is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import error_of, printed_json
from hypothesis import given
from hypothesis import strategies as st

from compllm.cli.app import run
from compllm.cli.known_questions import Item, read_items

scripted = pytest.mark.usefixtures("example_settings", "backend")


def written(tmp_path: Path, *records: object, name: str = "mine.jsonl") -> Path:
    path = tmp_path / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@scripted
def test_the_page_counts_answers_plans_routes_and_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(
        tmp_path,
        {"question": "the whole", "answer": "30"},
        {"question": "the whole", "accept": [["thirty", "31"]]},
        {"question": "the whole"},
    )
    assert run(["eval", "--questions", str(path)]) == 0
    out = capsys.readouterr().out
    assert "3 questions, 0 failed" in out
    assert "right       1 of 2 (50%)" in out
    assert "thirty or 31" in out
    assert "by sub-queries: 3 of 3" in out
    assert "routes      chemistry 6, base 3" in out
    assert "whole       p50 " in out


@scripted
def test_the_json_and_the_lines_hold_each_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, {"question": "the whole", "answer": "30"})
    out = tmp_path / "out.jsonl"
    assert run(["eval", "--questions", str(path), "--json", "--out", str(out)]) == 0
    value = printed_json(capsys)
    (line,) = map(json.loads, out.read_text().splitlines())
    assert value["lines"] == [line]
    assert (value["questions"], value["known"], value["right"]) == (1, 1, 1)
    assert value["plans"] == {"sub_queries": {"3": 1}, "without_a_plan": 0, "fallbacks": 0}
    assert line["experts"] == ["chemistry", "base", "chemistry"]
    assert line["answer"] == "It is 30."
    assert line["is_right"] is True


@scripted
def test_the_answers_so_far_are_kept_where_the_server_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, {"question": "the whole"}, {"question": "the rest"})
    out = tmp_path / "out.jsonl"
    out.write_text("of a run before\n")
    assert run(["eval", "--questions", str(path), "--out", str(out)]) == 1
    assert out.read_text() == "of a run before\n"
    (line,) = (tmp_path / "out.jsonl.partial").read_text().splitlines()
    assert json.loads(line)["answer"] == "It is 30."
    assert f"the answers so far are in {out}.partial" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_named_before_anything_is_asked(
    tmp_path: Path, example_settings: None, backend: object, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, {"question": "the rest"})  # the backend has no answer to it
    assert run(["eval", "--questions", str(path), "--out", str(tmp_path / "no" / "out")]) == 2
    assert f"cannot write {tmp_path / 'no' / 'out'}" in error_of(capsys)


def test_a_file_of_lines_or_a_table_is_read(tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text("# mine\nWhat is iron?\n\nWhat is tin?\n")
    assert read_items(text) == (Item("What is iron?"), Item("What is tin?"))
    table = tmp_path / "mine.csv"
    table.write_text("question,answer\nWhat is Fe?,iron\nWhat is Sn?,\n")
    assert read_items(table) == (Item("What is Fe?", (("iron",),)), Item("What is Sn?"))


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"question": ""}, "line 1: question is ''"),
        ({"question": "a", "answer": 3}, "line 1: answer is 3: expected a text"),
        ({"question": "a", "accept": [["b", 3]]}, "line 1: accept is 3: expected a text"),
        ({"question": "a", "accept": []}, "line 1: accept is []"),
        ({"question": "a", "accept": ["iron"]}, "line 1: accept is ['iron']"),
    ],
)
def test_a_bad_line_is_named(
    record: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Exception, match="line 1") as caught:
        read_items(written(tmp_path, record))
    assert said in str(caught.value)


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_without_a_file_the_remedy_is_named(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["eval", *arguments]) == 2
    if arguments:
        assert "give --questions FILE" in error_of(capsys)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="has no question"):
        read_items(written(tmp_path))


@pytest.mark.parametrize(
    ("answer", "expected", "is_right"),
    [
        ("It is 30.", (("30",),), True),
        ("It is 300.", (("30",),), False),
        ("It is -5.", (("5",),), False),
        ("3.5 grams", (("3.5",),), True),
        ("A non-metal", (("metal",),), False),
        ("iron; 26", (("Fe", "iron"), ("26",)), True),
        ("iron", (("Fe", "iron"), ("26",)), False),
        ("I do not know", (("I do not know",),), True),
    ],
)
def test_every_part_stands_in_the_answer_as_whole_words(
    answer: str, expected: tuple[tuple[str, ...], ...], is_right: bool
) -> None:
    assert Item("?", expected).is_right(answer) is is_right


@given(st.text(alphabet="abc 123.", min_size=1).filter(lambda text: text.strip(" .")))
def test_an_answer_holds_itself(text: str) -> None:
    assert Item("?", ((text,),)).is_right(text)
