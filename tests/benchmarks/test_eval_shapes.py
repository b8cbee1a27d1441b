"""Shapes predicted from the question: found where the words show them, not where they do not."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from benchmarks.accuracy import eval_plans
from benchmarks.accuracy.plans import Graph, best_constants
from benchmarks.accuracy.shapes import foretell

PAIR = Graph(2, frozenset({(1, 2)}))
JOIN = Graph(3, frozenset({(1, 3), (2, 3)}))


def _asked(is_told: bool) -> tuple[list[str], list[Graph]]:
    rng = random.Random(0)
    golds = [rng.choice((PAIR, JOIN)) for _ in range(120)]
    openings = {2: "who is it", 3: "which of them is it"}
    questions = [
        f"{openings[gold.num_nodes] if is_told else 'is it'} w{rng.randrange(9)}?" for gold in golds
    ]
    return questions, golds


def test_words_that_tell_the_shape_are_found() -> None:
    questions, golds = _asked(is_told=True)
    assert foretell(questions, golds) == {"node count": 1.0, "edge F1": 1.0}


def test_where_the_words_tell_nothing_a_constant_does_as_well() -> None:
    questions, golds = _asked(is_told=False)
    found, best = foretell(questions, golds), best_constants(golds)
    assert found["node count"] <= best["node count"][0] + 0.05
    assert found["edge F1"] <= best["edge F1"][0] + 0.05


def test_the_flag_writes_a_table_of_the_human_sets_without_an_engine(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "generator"
    folder.mkdir(parents=True)
    questions, golds = _asked(is_told=True)
    plans = {2: "1 | a\n2 <1> | b", 3: "1 | a\n2 | b\n3 <1,2> | c"}
    rows = [
        {"id": f"{at}", "source": "break", "question": question, "plan": plans[gold.num_nodes]}
        for at, (question, gold) in enumerate(zip(questions, golds, strict=True))
    ]
    for place, split in enumerate(("train", "validation", "test")):
        text = "".join(json.dumps(row) + "\n" for row in rows[place::3])
        (folder / f"{split}.jsonl").write_text(text)
    arguments = ["--classifier", "--source", "break", "--data", str(tmp_path / "data")]
    assert eval_plans.main([*arguments, "--out", str(tmp_path)]) == 0
    (found,) = json.loads((tmp_path / "eval_plans_foretold.json").read_text())["tables"].values()
    assert [row["foretold_%"] for row in found] == [100.0, 100.0]
    assert found[0]["questions"] == 120


def test_a_source_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "generator").mkdir()
    for split in ("train", "validation", "test"):
        (tmp_path / "generator" / f"{split}.jsonl").write_text("")
    assert eval_plans.main(["--classifier", "--data", str(tmp_path), "--out", str(tmp_path)]) != 0
    assert "strategyqa" in capsys.readouterr().err
