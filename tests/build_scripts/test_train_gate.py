"""Fitting the gate: questions and their labels, floors, and the script as a whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from compllm.build_scripts import train_gate
from compllm.build_scripts.gating.fit import RISKS, choose_floors, fit, share_wrong
from compllm.build_scripts.gating.questions import Labelled, read_part
from compllm.errors import ConfigError
from compllm.routing.embed import Array, SentenceEncoder
from compllm.routing.gate import load_gate
from compllm.testing import HashingEncoder


def write(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def row(question: str, num_lines: int, source: str) -> dict[str, str]:
    plan = "\n".join(f"{number} | {question}" for number in range(1, num_lines + 1))
    return {"question": question, "plan": plan, "source": source}


def data(folder: Path, num_each: int = 30) -> tuple[Path, Path]:
    for part in ("train", "validation", "test"):
        rows = [
            row(f"What is thing {part} {number}?", 1, "single") for number in range(num_each)
        ] + [row(f"First this, and then that {part} {n}?", 2, "p") for n in range(num_each)]
        write(folder / "generator" / f"{part}.jsonl", *rows)
    requests = [{"request": f"Write {number}", "parallel": number % 2} for number in range(100)]
    return folder / "generator", write(folder / "requests.jsonl", *requests)


def test_a_plan_of_one_line_is_no_plan(tmp_path: Path) -> None:
    write(
        tmp_path / "train.jsonl", row("a?", 1, "single"), row("b?", 2, "p"), row("c?", 1, "break")
    )
    assert {(each.text, each.is_direct) for each in read_part(tmp_path, None, "train")} == {
        ("a?", True), ("b?", False), ("c?", True),
    }  # fmt: skip


def test_requests_are_split_without_overlap(tmp_path: Path) -> None:
    generator, requests = data(tmp_path)
    found = [
        each.text
        for part in ("train", "validation", "test")
        for each in read_part(generator, requests, part)  # type: ignore[arg-type]
        if each.source == "requests"
    ]
    assert len(found) == len(set(found)) == 100


def test_large_sources_are_thinned_and_singles_are_not(tmp_path: Path) -> None:
    rows = [row(f"s{number}", 1, "single") for number in range(600)]
    rows += [row(f"p{number}", 2, "p") for number in range(600)]
    write(tmp_path / "train.jsonl", *rows)
    found = read_part(tmp_path, None, "train")
    assert sum(each.is_direct for each in found) == 600
    assert sum(not each.is_direct for each in found) == 500
    assert found == read_part(tmp_path, None, "train")


def test_everyday_questions_join_from_the_folder_for_further_training(tmp_path: Path) -> None:
    """The gate knew no ordinary question and no short form: its sets had none."""
    write(tmp_path / "generator" / "train.jsonl", row("s0", 1, "single"))
    rows = [row(f"d{number}", 1, "everyday") for number in range(600)]
    rows += [row(f"e{number}", 2, "everyday") for number in range(1600)]
    write(tmp_path / "generator-more" / "train.jsonl", *rows, row("p0", 2, "p"))
    found = read_part(tmp_path / "generator", None, "train")
    everyday = [each.is_direct for each in found if each.source == "everyday"]
    assert (sum(everyday), len(everyday)) == (600, 600 + 1500)
    assert {each.source for each in found} == {"single", "everyday"}


def test_the_record_names_every_file_that_was_read(tmp_path: Path) -> None:
    generator, _ = data(tmp_path)
    arguments = train_gate.make_parser().parse_args(["--generator", str(generator)])
    parts = ("train.jsonl", "validation.jsonl")
    assert list(train_gate.input_hashes(arguments)) == [f"generator/{part}" for part in parts]
    write(tmp_path / "generator-more" / "train.jsonl", row("a?", 1, "everyday"))
    assert "generator-more/train.jsonl" in train_gate.input_hashes(arguments)


@pytest.mark.parametrize(
    ("line", "said"), [("{", "line 2 is not a JSON object"), ("{}", "line 2 has no 'question'")]
)
def test_a_bad_line_is_named(line: str, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "train.jsonl", row("a?", 1, "single"))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ConfigError, match=said):
        read_part(tmp_path, None, "train")


def clouds(seed: int) -> tuple[list[Labelled], Array]:
    """Three kinds of questions; the direct one lies between the others."""
    rng = np.random.default_rng(seed)
    centres = np.array([[1, 0, 0.3], [-1, 0, 0.3], [0, 0.2, 1]])
    rows = np.repeat(centres, 100, axis=0) + 0.2 * rng.standard_normal((300, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    kinds = [("p", False), ("break", False), ("single", True)]
    questions = [Labelled(str(n), kinds[n // 100][1], kinds[n // 100][0]) for n in range(300)]
    return questions, rows.astype(np.float32)


def test_the_head_scores_direct_questions_higher() -> None:
    head = fit(*clouds(0))
    questions, vectors = clouds(1)
    likely = head.scores(vectors)[:, 0] >= 0.5
    assert (likely == np.array([each.is_direct for each in questions])).mean() > 0.95


def test_two_kinds_are_enough() -> None:
    questions, vectors = clouds(0)
    head = fit(questions[100:], vectors[100:])
    assert head.scores(vectors)[250:, 0].mean() > 0.9


def test_floors_keep_their_risks_on_questions_of_another_draw() -> None:
    head = fit(*clouds(0))
    questions, vectors = clouds(1)
    is_direct = np.array([each.is_direct for each in questions])
    floors = choose_floors(head.scores(vectors)[:, 0], is_direct)
    assert floors
    assert [risk for risk, _ in floors] == sorted(risk for risk, _ in floors)
    assert {risk for risk, _ in floors} <= set(RISKS)
    others, vectors = clouds(2)
    scores, is_direct = head.scores(vectors)[:, 0], np.array([each.is_direct for each in others])
    for risk, floor in floors:
        sent, wrongly = (scores[is_direct] >= floor).mean(), (scores[~is_direct] >= floor).mean()
        assert share_wrong(float(sent), float(wrongly)) <= risk


def test_scores_that_tell_nothing_have_no_floor_of_small_risk() -> None:
    rng = np.random.default_rng(0)
    floors = choose_floors(rng.random(400), rng.random(400) < 0.5)
    assert all(risk > 0.2 for risk, _ in floors)


def test_the_script_writes_a_gate_and_tells_how_it_was_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def load(path: Path) -> HashingEncoder:
        return HashingEncoder()

    monkeypatch.setattr(SentenceEncoder, "load", load)
    generator, requests = data(tmp_path)
    out = tmp_path / "gate.npz"
    arguments = ["--generator", str(generator), "--requests", str(requests), "--out", str(out)]
    assert train_gate.main(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    gate = load_gate(out)
    assert gate.encoder == HashingEncoder.id
    assert gate.record["questions"]["train"]["single, direct"] == 30
    assert printed["data"].keys() == gate.record["data"].keys()


def test_too_few_questions_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def load(path: Path) -> HashingEncoder:
        return HashingEncoder()

    monkeypatch.setattr(SentenceEncoder, "load", load)
    generator, _ = data(tmp_path, num_each=5)
    out = tmp_path / "gate.npz"
    assert train_gate.main(["--generator", str(generator), "--out", str(out)]) != 0
    assert "5 training questions for no plan" in capsys.readouterr().err
    assert not out.exists()
