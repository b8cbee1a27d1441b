"""soak: how it judges answers and memory, and a smoke run on a real server that loses a process."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from benchmarks import soak
from benchmarks.load import soak_faults, soak_report
from benchmarks.load.soak_clients import Answer
from benchmarks.load.soak_faults import Sample
from benchmarks.load.soak_hostile import endings
from helpers import bare_catalogue

ALONE = Answer(token_ids=(5, 6, 7), log_probs=(-0.1, -0.7, -0.2))


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(token_ids=(5, 6, 7), log_probs=(-0.1, -0.69, -0.2)), "right"),
        (Answer(token_ids=(5, 8, 7), log_probs=(-0.1, -0.71, -0.3)), "near tie"),
        (Answer(token_ids=(5, 8, 7), log_probs=(-0.1, -0.9, -0.3)), "wrong"),
        (Answer(token_ids=(5, 6), log_probs=(-0.1, -0.7)), "wrong"),  # by what, is not known
        (None, "lost"),
    ],
)
def test_an_answer_is_judged_by_the_one_alone(answer: Answer | None, kind: str) -> None:
    assert soak_report.judge(ALONE, answer, 0.02).kind == kind


def test_a_plan_that_failed_is_counted_apart() -> None:
    alone = Answer("26 and 7", (("1 | a?", "26"), ("2 | b?", "7")))
    late = Answer("26", (("1 | a and b?", "26"),), fallback="the generator was late")
    assert soak_report.judge(alone, late, 0.02).kind == "fallback"


def test_the_first_step_that_differs_is_named() -> None:
    one = Answer("26", (("1 | a?", "26"), ("2 | b?", "7")))
    assert (
        one.parting(Answer("9", (("1 | a?", "26"), ("2 | b?", "9")))) == "response 2: '7' and '9'"
    )
    assert one.parting(Answer("26", (("1 | a?", "26"),))) == "2 and 1 lines"
    assert one.parting(Answer("27", one.steps)) == "answer: '26' and '27'"


def test_kills_come_in_the_first_half_and_later_pauses_are_short() -> None:
    faults = soak_faults.schedule(600.0, 6, 12, 2.0, random.Random(1))
    kills = [fault for fault in faults if fault.seconds is None]
    assert Counter(fault.target for fault in kills) == dict.fromkeys(soak_faults.TARGETS, 2)
    assert max(fault.at_s for fault in kills) < 300
    late = [fault.seconds or 0 for fault in faults if fault.at_s > 300]
    assert late
    assert max(late) <= 1.0
    assert [fault.at_s for fault in faults] == sorted(fault.at_s for fault in faults)


def test_memory_is_that_of_the_process_that_lives_last() -> None:
    first = [Sample(at_s, "comp_llm", 1, 900.0) for at_s in range(0, 100, 5)]
    second = [Sample(at_s, "comp_llm", 2, 200.0 + at_s / 60) for at_s in range(100, 600, 5)]
    cells = soak_faults.memory([*first, *second], 600.0)["comp_llm"]
    assert cells["processes"] == 2
    assert cells["slope_mib_per_min"] == pytest.approx(1.0)
    assert cells["first_minute_mib"] == 900.0
    assert cells["last_minute_mib"] == pytest.approx(209.4, abs=0.1)


def test_endings_are_counted_by_kind() -> None:
    found = [("wrong shape", "refused"), ("wrong shape", "refused"), ("huge guide", "away")]
    assert endings(found)["wrong shape"] == {"refused": 2}


@pytest.mark.triton
def test_a_smoke_run_survives_a_kill_and_a_pause(
    engine_dir: Path,
    encoder_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    (tmp_path / "encoder").symlink_to(encoder_dir.parent)
    monkeypatch.setenv("COMPLLM_CATALOGUE", str(bare_catalogue(tmp_path)))
    monkeypatch.setenv("COMPLLM_LIMITS_MAX_NODE_TOKENS", "8")
    monkeypatch.setenv("COMPLLM_LIMITS_MAX_ANSWER_TOKENS", "8")
    arguments = ["--quick", "--engine", str(engine_dir), "--max-tokens", "8"]
    assert soak.main([*arguments, "--out", str(tmp_path)]) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "soak.json").read_text()) == data
    summary = data["summary"]
    assert (summary["lost"], summary["wrong"], summary["near_tie"]) == (0, 0, 0)
    assert summary["right"] == summary["queries"] > 0
    assert (summary["kills"], summary["restarts_seen"]) == (1, 1)
    assert summary["wrong_alone_afterwards"] == summary["active_when_idle"] == 0
    assert summary["hostile_without_an_end"] == 0
    assert {row["process"] for row in data["tables"]["memory"]} >= {"tritonserver", "comp_llm"}
