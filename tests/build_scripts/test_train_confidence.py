"""train_confidence: files of questions, examples of a running path, and the fit."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from path_parts import CATALOGUE, make_llm, node_reply, plan_reply

from compllm.build_scripts.calibration.examples import Example, collect
from compllm.build_scripts.calibration.fit import (
    choose_threshold,
    figures,
    fit,
    threshold_of_answers,
)
from compllm.build_scripts.calibration.questions import Known, is_right, read_known
from compllm.build_scripts.train_confidence import main, make
from compllm.confidence import load_calibration, save_calibration
from compllm.errors import ConfigError
from compllm.testing import ScriptedBackend

IRON, NEON = "What is the atomic number of iron?", "What is the atomic number of neon?"
SLEEP = "Where do elephants sleep?"


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_three_kinds_of_files_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "known.jsonl",
        {"question": "A and B?", "accept": [["1", "one"], ["2"]], "kind": "two-part"},
        {"question": "C?", "answers": ["3", "4", "7"], "parents": [[], [], [0, 1]], "set": "all"},
        {"question": "D?", "answer": "8", "parents": []},
        {"question": "Is #1 even?", "answer": "yes", "parents": [{"question": "E?"}]},
    )
    assert read_known(path) == (
        Known("A and B?", (("1", "one"), ("2",)), "two-part"),
        Known("C?", (("7",),), "all"),
        Known("D?", (("8",),), "all"),
    )


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "known.jsonl", {"question": "A?", "answer": "1"}, {"question": "B?"})
    with pytest.raises(ConfigError, match="line 2 is no question with answers"):
        read_known(path)


@pytest.mark.parametrize(
    ("response", "accepted", "right"),
    [
        ("The capital is Paris.", ("Paris",), True),
        ("16", ("6",), False),
        ("-6", ("6",), False),
        ("3.5", ("3",), False),
        ("It is 3.", ("3",), True),
        ("H2O", ("H",), False),
        ("nonmetal", ("metal",), False),
        ("IRON", ("iron",), True),
    ],
)
def test_an_answer_counts_as_a_whole_word(
    response: str, accepted: tuple[str, ...], right: bool
) -> None:
    assert is_right(response, accepted) == right


async def test_each_leaf_of_an_answer_becomes_an_example() -> None:
    backend = ScriptedBackend(
        plan_reply(f"1 | {IRON}\n", f"2 | {NEON}\n", f"3 | {SLEEP}"),
        node_reply(IRON, "26", log_probs=(-0.1,)),
        node_reply(NEON, "24", log_probs=(-2.0,)),
        node_reply(SLEEP, "On the ground", log_probs=(-0.5, -0.5, -0.5)),
    )
    known = Known("All three?", (("26",), ("10",), ("ground",)), "list")
    async with make_llm(backend, compose__policy="never") as llm:
        found = await collect(llm, [known])
    assert [(each.source, each.is_right) for each in found] == [
        ("expert", True),
        ("expert", False),
        ("base", True),
    ]
    assert found[1].features[0] == -2.0
    assert CATALOGUE.base.name == "base"


async def test_a_response_that_is_not_known_is_no_example() -> None:
    backend = ScriptedBackend(
        plan_reply(f"1 | {IRON}"), node_reply(IRON, "I do not know", log_probs=(-0.1,))
    )
    async with make_llm(backend) as llm:
        assert await collect(llm, [Known(IRON, (("26",),), "fact")]) == []


def examples(source: str, count: int = 200) -> list[Example]:
    """Right as often as the first feature says."""
    rng = random.Random(0)
    made = []
    for index in range(count):
        score = rng.uniform(-6, 0)
        right = rng.random() < 1 / (1 + pow(2.718, -(score + 3) * 2))
        features = (score, score / 2, 0.0, 0.0, rng.random(), 1.0)
        made.append(Example(source, features, right, right, "all", f"q{index}", ""))  # type: ignore[arg-type]
    return made


def test_the_fit_finds_what_tells_right_from_wrong() -> None:
    scale, sure, right = fit(examples("expert"))
    assert scale((0.0, 0.0, 0.0, 0.0, 0.5, 1.0)) > 0.9
    assert scale((-6.0, -3.0, 0.0, 0.0, 0.5, 1.0)) < 0.1
    found = figures(sure, right)
    assert found["auroc"] > 0.9
    assert found["risk_at_coverage"]["0.5"] < found["risk_at_coverage"]["1.0"]


def test_the_threshold_is_the_lowest_that_keeps_the_risk() -> None:
    _, sure, right = fit(examples("expert"))
    threshold = choose_threshold(sure, right, 0.05)
    assert (~right[sure >= threshold]).mean() <= 0.05
    assert (~right[sure >= threshold - 0.005]).mean() > 0.05


def test_an_answer_is_as_sure_as_its_leaves_together() -> None:
    def leaf(question: str, right: bool) -> Example:
        return Example("expert", (), True, right, "p", question, "")

    # Pairs of leaves: 0.9 each where the answer is right, 0.8 each where it is wrong.
    pairs = [(f"q{i}", i >= 20) for i in range(200)]
    found = [leaf(*pair) for pair in pairs for _ in range(2)]
    sure = np.array([0.9 if right else 0.8 for _, right in pairs for _ in range(2)])
    assert 0.64 < threshold_of_answers(found, sure, 0.04) <= 0.81
    assert threshold_of_answers(found, sure, 0.2) == 0


def test_a_calibration_is_made_and_read_back(tmp_path: Path) -> None:
    calibration, record = make([*examples("expert"), *examples("base")], 0.05, 0.85, 0)
    path = tmp_path / "confidence.json"
    save_calibration(path, replace(calibration, record=record))
    assert load_calibration(path) == replace(calibration, record=record)
    assert 0 < record["expert"]["coverage"] < 1
    assert record["base"]["wrong_marked"] >= 0.85 > record["base"]["right_marked"]


def test_too_few_examples_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 60 are needed"):
        fit(examples("expert", 20))


def _example_row(number: int) -> dict[str, object]:
    is_expert, is_right = number % 2 == 0, number % 5 != 0
    features = [-0.1 * number % 3 - 3.0 * (not is_right)] * 6
    return {
        "source": "expert" if is_expert else "base", "features": features, "is_right": is_right,
        "is_answer_right": is_right, "kind": "all", "question": f"Q{number}?", "response": "1",
    }  # fmt: skip


def test_examples_of_a_run_before_are_fitted_again_without_asking(tmp_path: Path) -> None:
    """A change of the risk asked every question again."""
    examples = write(tmp_path / "examples.jsonl", *(_example_row(n) for n in range(300)))
    out = tmp_path / "confidence.json"
    command = ["--examples", str(examples), "--out", str(out)]
    assert main([*command, "--risk", "0.2"]) == 0
    loose = load_calibration(out)
    assert main([*command, "--risk", "0.01"]) == 0
    strict = load_calibration(out)
    assert loose.expert == strict.expert
    assert loose.min_confidence < strict.min_confidence
    assert strict.record["risk_wanted"] == 0.01
    assert strict.record["questions"] == {"all": 300}


def test_a_file_that_holds_no_examples_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write(tmp_path / "examples.jsonl", _example_row(1), {"features": [1]})
    assert main(["--examples", str(bad)]) == 1
    assert "line 2 is no example of train_confidence" in capsys.readouterr().err


def test_without_questions_and_examples_the_remedy_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([]) == 1
    assert "give --questions FILE" in capsys.readouterr().err
