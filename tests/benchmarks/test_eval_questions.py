"""Questions with accepted answers: the grader's rule, the file's faults, both sides' answers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from benchmarks.accuracy import eval_questions
from benchmarks.accuracy.eval_questions import (
    Asked,
    Reply,
    ask_all,
    ask_base,
    ask_system,
    counts,
    fill,
    listed,
    mark_counts,
    quick_part,
)
from benchmarks.accuracy.questions import Question, is_right, is_unknown, read_questions
from benchmarks.report import Report
from path_parts import make_llm, node_reply, plan_reply

from compllm.errors import BackendError, ConfigError
from compllm.testing import Reply as Scripted
from compllm.testing import ScriptedBackend


def question(*accept: tuple[str, ...], kind: str = "fact", name: str = "q1") -> Question:
    return Question(name, kind, "What is it?", "it", accept)


@pytest.mark.parametrize(
    ("answer", "accept"),
    [
        ("1", ("1",)),
        ("The answer is 26.", ("26",)),
        ("26.", ("26",)),
        ("26.0", ("26",)),
        ("Z=26", ("26",)),
        ("1,000 years", ("1000",)),
        ("PARIS", ("Paris",)),
        ("H₂O", ("H2O",)),
        ("It's in New  York.", ("new york",)),
        ("l\u2019eau", ("eau",)),
        ("the one after", ("26", "one")),
        ("2, 3 or 4", ("3",)),  # contradicting alternatives are still right
    ],
)
def test_an_alternative_stands_as_a_whole_word_or_number(
    answer: str, accept: tuple[str, ...]
) -> None:
    assert is_right(answer, question(accept))


@pytest.mark.parametrize(
    ("answer", "accept"),
    [
        ("11", ("1",)),
        ("21", ("1",)),
        ("3.5", ("3", "5")),
        ("-5", ("5",)),
        ("", ("1",)),
        ("Parisian", ("Paris",)),
        ("a non-metal", ("metal",)),
        ("twenty-seven", ("twenty", "seven")),
        ("valine", ("Val",)),
        ("I do not know.", ("I", "not", "know")),
    ],
)
def test_a_piece_of_a_word_or_number_does_not_count(answer: str, accept: tuple[str, ...]) -> None:
    assert not is_right(answer, question(accept))


def test_every_part_needs_an_alternative_in_any_order() -> None:
    two = question(("26", "twenty-six"), ("Fe",))
    assert is_right("Fe; 26", two)
    assert is_right("The symbol is Fe and the number twenty-six.", two)
    assert not is_right("26", two)
    assert not is_right("26; I do not know", two)


def test_an_admission_is_recognised() -> None:
    assert is_unknown("I do not know.")
    assert is_unknown("I don\u2019t know the answer")
    assert is_unknown("26; I do not know")
    assert not is_unknown("Nothing that I know")


GOOD = {"id": "q1", "kind": "fact", "question": "Why?", "answer": "so", "accept": [["so"]]}


def test_a_file_is_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps({**GOOD, "id": "q2"}) + "\n")
    assert [each.id for each in read_questions(path)] == ["q1", "q2"]
    assert read_questions(path)[0].accept == (("so",),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no question"),
        ("{", "line 1"),
        ("[]", "not a JSON object"),
        (json.dumps({**GOOD, "kind": 3}), "'kind' is 3, expected a str"),
        (json.dumps({**GOOD, "accept": []}), "'accept' is \\[\\]"),
        (json.dumps({**GOOD, "accept": ["so"]}), "alternatives for each part"),
        (json.dumps({**GOOD, "accept": [["."]]}), "alternatives for each part"),
        (f"{json.dumps(GOOD)}\n{json.dumps(GOOD)}", "'q1' stands 2 times"),
    ],
)
def test_a_bad_file_is_refused_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_questions(path)


async def test_both_sides_are_asked_and_graded() -> None:
    text = "What is the atomic number of iron?"
    asked = Question("q1", "fact", text, "26", (("26",),))
    backend = ScriptedBackend(
        plan_reply(f"1 | {text}"),
        node_reply(text, "It is 26.", adapter_id=7),
        node_reply(text, " Iron. ", adapter_id=None),
    )
    async with make_llm(backend, gate__mode="off") as llm:
        sides = {"system": ask_system(llm), "base": ask_base(backend, llm)}
        (found,) = await ask_all([asked], sides)
    assert found.system is not None
    assert (found.system.text, found.system.is_right) == ("It is 26.", True)
    assert found.system.steps == (f"{text} [chemistry]",)
    assert found.base == Reply("Iron.")
    (alone,) = backend.find("You answer.")
    assert alone.request.sampling.max_tokens == llm.config.limits.max_node_tokens


async def test_a_question_that_fails_is_wrong_and_keeps_its_error() -> None:
    backend = ScriptedBackend(Scripted(error=BackendError("too long")))
    async with make_llm(backend) as llm:
        (found,) = await ask_all([question(("1",))], {"base": ask_base(backend, llm)})
    assert found == Asked(found.question, base=Reply("", error="too long"))


def test_answers_are_counted_by_what_they_admit() -> None:
    wrong = Reply("x")
    asked = [
        Asked(question(("1",)), Reply("1", is_right=True, is_drawn=True), wrong),
        Asked(question(("1",)), Reply("I do not know."), wrong),
        Asked(question(("1",)), Reply("2", is_low=True, confidence=0.1), wrong),
        Asked(question(("1",)), Reply("3"), Reply("1", is_right=True)),
    ]
    assert counts(asked) == {
        "asked": 4, "system_right": 1, "system_unknown": 1, "system_low": 1,
        "system_drawn": 1, "base_right": 1, "base_unknown": 0,
    }  # fmt: skip
    assert mark_counts(asked) == {
        "given": 2, "given_wrong": 1, "base_wrong": 3, "base_wrong_marked": 2,
    }  # fmt: skip


def test_a_side_that_was_not_asked_has_no_columns() -> None:
    assert counts([Asked(question(("1",)), base=Reply("1"))]).keys() == {
        "asked", "base_right", "base_unknown",
    }  # fmt: skip
    assert mark_counts([Asked(question(("1",)), base=Reply("1"))]) == {}
    assert mark_counts([Asked(question(("1",)), Reply("1"))]) == {"given": 1, "given_wrong": 1}


def test_the_report_has_each_kind_all_and_every_question() -> None:
    report = Report("eval_questions_x", argparse.Namespace())
    asked = [Asked(question(("1",), kind=kind, name=kind), Reply("1")) for kind in ("b", "a", "b")]
    fill(report, asked)
    assert [(row["kind"], row["asked"]) for row in report.tables["right"]] == [
        ("b", 2), ("a", 1), ("all", 3),
    ]  # fmt: skip
    assert "base_right" not in report.tables["right"][0]
    assert [row["id"] for row in report.summary["questions"]] == ["b", "a", "b"]
    json.dumps(report.data(), allow_nan=False)


def test_the_list_shows_both_answers_and_their_grades() -> None:
    system, base = Reply("x\ny", confidence=0.25, is_low=True), Reply("it", is_right=True)
    assert listed([Asked(question(("it",)), system, base)]).split("\n") == [
        "q1 (fact) What is it? [it]",
        "    system wrong, confidence 0.25, low: x y",
        "    base   right: it",
    ]


def test_quick_keeps_the_first_few_of_each_kind() -> None:
    questions = [question(("1",), kind=kind) for kind in ("a", "a", "a", "b")]
    assert [each.kind for each in quick_part(questions)] == ["a", "a", "b"]


def test_a_label_that_cannot_name_a_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--questions", str(tmp_path / "none"), "--label", "../x"]
    assert eval_questions.main(arguments) == 1
    assert "--label is '../x'" in capsys.readouterr().err
