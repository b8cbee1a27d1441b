"""The parts of the router's evaluation, on a small space of vectors."""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.routing.bench import Bench
from benchmarks.routing.contestants import Sample, centred, fitted, microseconds
from benchmarks.routing.invariance import PARAPHRASES
from benchmarks.routing.metrics import auroc, auroc_interval, choice
from benchmarks.routing.scale import COUNTS, difference, draw_experts, relabel, run_scale
from benchmarks.store import ResultStore

from compllm.build_scripts.routing.questions import SUBJECTS, Question
from compllm.routing.embed import Array, plain

TOPICS = (*SUBJECTS, *(f"subject_{number:02}" for number in range(40)))
EXPERTS = ("chemistry", "biology", "mathematics")


def sample(seed: int, num_each: int = 6) -> Sample:
    """Questions of every topic around a direction of its own."""
    rng = np.random.default_rng(seed)
    questions = [
        Question(f"{seed} {topic} {number}", SUBJECTS.get(topic), topic)
        for topic in TOPICS
        for number in range(num_each)
    ]
    rows = np.repeat(np.eye(len(TOPICS), 64), num_each, axis=0)
    rows = rows + 0.05 * rng.standard_normal(rows.shape)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    vectors: dict[str, Array] = {
        question.text: row.astype(np.float32) for question, row in zip(questions, rows, strict=True)
    }
    return Sample.of(questions, vectors, EXPERTS)


@pytest.mark.parametrize(
    ("inside", "outside", "expected"),
    [([2, 3], [0, 1], 1.0), ([0, 1], [2, 3], 0.0), ([1], [1], 0.5), ([1, 3], [2, 2], 0.5)],
)
def test_auroc_counts_pairs(inside: list[float], outside: list[float], expected: float) -> None:
    assert auroc(np.array(inside), np.array(outside)) == expected


def test_auroc_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    inside, outside = rng.integers(2, 9, 50) / 10, rng.integers(0, 7, 80) / 10
    expected = roc_auc_score([1] * 50 + [0] * 80, np.concatenate([inside, outside]))
    assert auroc(inside, outside) == pytest.approx(expected)


def test_an_interval_holds_its_value() -> None:
    fit_on, test_on = sample(0), sample(1)
    ((_, head),) = fitted(fit_on, EXPERTS, ["means"])
    scores = head.scores(test_on.vectors)
    found = auroc_interval(scores, test_on.labels, test_on.is_far)
    assert found.low <= found.value <= found.high
    assert choice(scores, test_on.labels).value > 0.9
    assert microseconds(head, test_on.vectors, 5) > 0


def test_experts_grow_from_the_three_domains_and_keep_those_before() -> None:
    drawn = [draw_experts(TOPICS, count, 1) for count in COUNTS]
    assert drawn[0] == EXPERTS
    for fewer, more in itertools.pairwise(drawn):
        assert more[: len(fewer)] == fewer
    assert draw_experts(TOPICS, 8, 1) != draw_experts(TOPICS, 8, 2)


def test_a_subject_belongs_to_its_domain_or_to_itself() -> None:
    labels = relabel(sample(0, 1), (*EXPERTS, "subject_05")).labels
    assert [int((labels == place).sum()) for place in range(4)] == [2, 2, 4, 1]


def test_scale_is_read_back_on_the_second_run(tmp_path: Path) -> None:
    fit_on, test_on, ticks = sample(0), sample(1), []
    runs = []
    for _ in range(2):
        store = ResultStore(tmp_path, "scale", "x")
        found = run_scale(fit_on, test_on, ("means",), 2, store, lambda: ticks.append(1))
        store.close()
        runs.append(found)
    assert runs[0] == runs[1]
    assert len((tmp_path / "scale-x.jsonl").read_text().splitlines()) == len(ticks) / 2 == 9
    shares, area = runs[0]["means", 32]
    assert len(shares) >= 32 * 6
    assert np.mean(list(shares.values())) > 0.9
    assert area > 0.8
    gain = difference(shares, dict.fromkeys(shares, 0.0))
    assert gain.value == pytest.approx(np.mean(list(shares.values())))


def test_centring_takes_the_common_part_away() -> None:
    fit_on = sample(0)
    shifted = Sample(fit_on.questions, fit_on.vectors + 3, fit_on.labels, fit_on.topics)
    moved, _ = centred(shifted, shifted)
    assert abs(moved.vectors.mean(axis=0)).max() < 0.05
    np.testing.assert_allclose(np.linalg.norm(moved.vectors, axis=1), 1, atol=1e-5)


def test_sub_queries_are_thinned_out_evenly_and_come_once(tmp_path: Path) -> None:
    for name, texts in (("p", "abc"), ("all", "cdef")):
        (tmp_path / name).mkdir()
        record = {"steps": list(texts), "experts": ["biology"] * len(texts)}
        (tmp_path / name / "test.jsonl").write_text(json.dumps(record))
    parts: Any = (None, None, None, (), print)
    bench = Bench(argparse.Namespace(datasets=tmp_path), *parts)
    assert [question.text for question in bench.sub_queries()] == list("abcdef")
    assert [question.text for question in bench.sub_queries(3)] == list("ace")
    assert not Bench(argparse.Namespace(datasets=None), *parts).sub_queries()


@pytest.mark.parametrize(
    "name", ["no closing mark", "more closing marks", "blanks around", "wide white space"]
)
def test_white_space_and_closing_marks_cannot_flip_a_route(name: str) -> None:
    for text in ("Is 3.5 larger than #1?", "Name the element W."):
        assert plain(PARAPHRASES[name](text)) == plain(text)
