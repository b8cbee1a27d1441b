"""bench_lookup: drafts, what greedy decoding keeps of them, and what that takes; then all of it on
a real engine of two random layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.engine import bench_lookup
from benchmarks.engine.drafts import (
    Case,
    Costs,
    Form,
    all_plan_ms,
    decode,
    look_up,
    one_plans_ms,
    remember,
)
from engines import make_engine

from compllm.backends.tokenizer import Tokenizer
from compllm.embedded.guide import GuideCompiler
from compllm.lab.engine_profile import EngineProfile

FORM = Form((2, 1), 3)
# 1 ms a step and 0.5 ms a token
COSTS = Costs(EngineProfile("linear", ((0, 1.0), (1, 1.5), (2, 2.0)), 1.0), mask_ms=0.25)


@pytest.mark.parametrize(
    ("context", "drafted"),
    [
        ([1, 2, 3, 4, 5, 1, 2], [3, 4, 5]),  # the longest n-gram is looked for first
        ([1, 2, 3, 9, 2, 7, 8, 1, 2], [3, 9, 2]),  # though the shorter one stands nearer
        ([2, 5, 6, 2, 7, 8, 9, 2], [7, 8, 9]),  # the latest of two places
        ([1, 1], [1]),  # never beyond what is known
        ([1, 2, 3], []),
        ([1], []),
    ],
)
def test_a_draft_is_what_followed_the_latest_such_place(
    context: list[int], drafted: list[int]
) -> None:
    assert look_up(context, FORM) == drafted


def test_plans_remembered_are_asked_where_the_context_has_nothing() -> None:
    form = remember([[1, 2, 3, 4], [2, 3, 5], [2, 3, 4], [9, 1]], (2, 1), 2)
    assert look_up([7, 2, 3], form) == [4]
    assert look_up([7, 1], form) == [2, 3]
    assert look_up([1, 8, 7, 1], form) == [8, 7]
    assert look_up([7, 8], form) == []


@pytest.fixture(scope="module")
def tokenizer(base_dir: Path) -> Tokenizer:
    return Tokenizer.from_dir(base_dir)


@pytest.fixture(scope="module")
def guides(base_dir: Path, tokenizer: Tokenizer) -> GuideCompiler:
    return GuideCompiler(base_dir, 49152, [tokenizer.special.end_id])


def steps_of(
    prompt: str, plan: str, regex: str, tokenizer: Tokenizer, guides: GuideCompiler
) -> list[tuple[int, int]]:
    end = tokenizer.special.end_id
    case = Case(tuple(tokenizer.encode_text(prompt)), (*tokenizer.encode_text(plan), end))
    steps = decode(case, FORM, guides.start("regex", regex, [end]))
    assert sum(1 + kept for _, kept in steps) == len(case.tokens) - 1
    return steps


def test_steps_keep_what_greedy_decoding_would_have_written(
    tokenizer: Tokenizer, guides: GuideCompiler
) -> None:
    prompt, plan = " one two three four five six", " one two three nine"
    assert steps_of(prompt, plan, "[a-z ]*", tokenizer, guides) == [(3, 2), (0, 0)]


def test_the_guide_cuts_a_draft_where_it_forbids_it(
    tokenizer: Tokenizer, guides: GuideCompiler
) -> None:
    prompt, plan = " one two three four five six", " one two three nine"
    guide = " one two three nine"
    assert steps_of(prompt, plan, guide, tokenizer, guides)[0] == (2, 2)


def test_a_plan_ends_where_a_line_is_said_again(tokenizer: Tokenizer) -> None:
    text = "1 | Who?\n2 | What?\n3 | Who?\n"
    tokens = tuple(tokenizer.encode_text(text + "4 | Why?"))
    kept = bench_lookup.until_said_again(tokens, tokenizer)
    assert tokenizer.decode(kept) == text
    assert bench_lookup.until_said_again(kept[:-1], tokenizer) == kept[:-1]


def test_time_counts_tokens_masks_and_who_else_is_live() -> None:
    plans = [[0, 2], [0]]  # drafted tokens of each step
    assert all_plan_ms(plans, 1, COSTS, is_drafting=True) == pytest.approx(1.75 + 3.25 + 1.75)
    assert all_plan_ms(plans, 2, COSTS, is_drafting=True) == pytest.approx(2.5 + 3.25)
    assert one_plans_ms(plans, 3, COSTS, is_drafting=True) == pytest.approx(2.75 + 4.25 + 2.75)


def test_questions_come_alike_from_every_source(tmp_path: Path) -> None:
    write_questions(tmp_path)
    chosen = bench_lookup.read_questions(tmp_path / "generator" / "test.jsonl", 4, seed=0)
    assert [question["source"] for question in chosen] == ["few", "many", "many", "many"]


def write_questions(data: Path) -> None:
    (data / "generator").mkdir()
    plan = "1 | Who wrote Hamlet?\n2 <1> | When was #1 born?"
    question = {"question": "When was the man who wrote Hamlet born?", "plan": plan}
    sources = ("many", "many", "few", "many", "many")
    lines = [json.dumps({**question, "id": str(i), "source": s}) for i, s in enumerate(sources)]
    for split in ("test", "train"):
        (data / "generator" / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def test_a_smoke_run_reports_every_form_for_both_kinds_of_plan(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = make_engine(tiny_checkpoint, tmp_path / "engine", "int8", {})
    write_questions(tmp_path)
    where = ["--engine", str(engine), "--data", str(tmp_path), "--out", str(tmp_path)]
    assert bench_lookup.main(["--smoke", "--limit", "2", *where]) == 0
    saved = json.loads((tmp_path / "bench_lookup.json").read_text())
    rows = saved["tables"]["look-up"]
    forms = len(bench_lookup.WAYS) * len(bench_lookup.NUM_DRAFTS)
    assert [row["plans"] for row in rows] == ["gold"] * forms + ["engine"] * forms
    assert all(row["tokens_per_step"] >= 1 for row in rows)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == saved
