"""The gate's evaluation: its tables on scores that are known, and questions with exact answers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from benchmarks.accuracy.eval_gate import (
    Asked,
    ask_both,
    engine_tables,
    exact_questions,
    label_tables,
)
from benchmarks.report import Report
from path_parts import make_llm, node_reply, plan_reply

from compllm.build_scripts.gating.questions import Labelled
from compllm.routing.gate import DIRECT, Gate
from compllm.routing.heads import Layer, Softmax
from compllm.testing import HashingEncoder, Reply, ScriptedBackend

ZERO = Softmax(
    (DIRECT,), (Layer(np.zeros((64, 2), np.float32), np.zeros(2, np.float32), np.array([0, -1])),)
)
GATE = Gate(ZERO, ((0.05, 0.9), (0.2, 0.6)), HashingEncoder.id)


def report() -> Report:
    return Report("eval_gate", argparse.Namespace())


def test_a_level_tells_what_its_floor_sends() -> None:
    questions = [Labelled(f"d{n}", True, "single") for n in range(20)]
    questions += [Labelled(f"p{n}", False, "p") for n in range(20)]
    scores = np.array([0.95] * 10 + [0.7] * 10 + [0.95] * 1 + [0.7] * 3 + [0.1] * 16)
    made = report()
    label_tables(made, GATE, questions, scores)
    strict, loose, likely = made.tables["levels"]
    assert (strict["sent_of_direct_%"], strict["sent_of_plan_%"]) == (50, 5)
    assert strict["wrong_%"] == 9.09
    assert (loose["single_direct_%"], loose["p_plan_%"]) == (100, 20)
    assert likely["risk"] == "on"
    assert made.summary["auroc"] > 0.9
    json.dumps(made.data(), allow_nan=False)


def test_the_curve_mixes_both_outcomes_by_the_score() -> None:
    asked = [
        Asked("single", 0.95, 300, 100, True, True),
        Asked("p", 0.3, 500, 100, True, False),
    ]
    made = report()
    engine_tables(made, GATE, asked, 0.05)
    assert made.summary["engine"] == {
        "off": {"floor": 1.01, "sent_%": 0, "mean_ms": 400, "right_%": 100},
        "on": {"floor": 0.5, "sent_%": 50, "mean_ms": 300, "right_%": 100},
        "auto, 0.05": {"floor": 0.9, "sent_%": 50, "mean_ms": 300, "right_%": 100},
    }
    assert made.tables["engine_curve"][0]["right_%"] == 50


async def test_each_question_is_asked_planned_and_straight() -> None:
    question = "What is the atomic number of iron?"
    backend = ScriptedBackend(
        plan_reply("1 | What is it?"), node_reply(question, "It is 26."), Reply("No idea.")
    )
    async with make_llm(backend) as llm:
        (asked,) = await ask_both(llm, GATE, HashingEncoder(), [("single", question, "26")])
    assert (asked.is_right_planned, asked.is_right_straight) == (False, True)
    assert asked.score == 0.5
    assert asked.planned_ms > 0


def test_exact_questions_stand_alone(tmp_path: Path) -> None:
    def write(name: str, *rows: dict[str, object]) -> None:
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name / "test.jsonl").write_text(text)

    for name in ("chemistry", "biology", "mathematics"):
        write(
            name,
            {"question": f"{name}?", "parents": [], "answer": "1"},
            {"question": "And #1?", "parents": [{"question": "?", "response": "2"}], "answer": "1"},
        )
    for name in ("p", "all"):
        write(name, {"question": f"{name}?", "answer": "2"})
    found = sorted(exact_questions(tmp_path, 5, 0))
    assert [(kind, question) for kind, question, _ in found] == [
        ("all", "all?"), ("p", "p?"),
        ("single", "biology?"), ("single", "chemistry?"), ("single", "mathematics?"),
    ]  # fmt: skip
