"""Human decompositions become plans, keep their words, and stay out of each other's splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compllm.build_scripts.datasets.human import MAX_NODES, read_human
from compllm.build_scripts.datasets.kinds import SPLITS
from compllm.errors import ConfigError
from compllm.plan import parse_plan

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def record(number: int, steps: list[str], parents: list[list[int]]) -> dict[str, Any]:
    return {"id": f"q-{number}", "question": f"Q {number}?", "steps": steps, "parents": parents}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
    return path


def rows(path: Path, **options: Any) -> list[dict[str, Any]]:
    found = read_human(path, "break", **options)
    return [row for split in SPLITS for row in found.splits[split]]


def test_steps_become_lines_with_their_references(tmp_path: Path) -> None:
    path = write(
        tmp_path / "in", [record(1, ["return flights", "return #1 to  Oslo"], [[], [0, 0]])]
    )
    [row] = rows(path)
    assert row["plan"] == "1 | return flights\n2 <1> | return #1 to Oslo"
    assert row["source"] == "break"


@pytest.mark.parametrize(
    ("steps", "parents"),
    [
        (["one"] * (MAX_NODES + 1), [[]] * (MAX_NODES + 1)),
        (["forward", "two"], [[1], []]),
        (["itself"], [[0]]),
        ([""], [[]]),
        (["x" * 700], [[]]),
        ([], []),
        (["one"], []),
        (["one"], [["0"]]),
    ],
)
def test_what_is_no_plan_is_dropped_and_counted(
    tmp_path: Path, steps: list[str], parents: list[list[int]]
) -> None:
    found = read_human(write(tmp_path / "in", [record(1, steps, parents)]), "break")
    assert found.num_dropped == 1
    assert not any(found.splits.values())


def test_the_split_depends_on_the_id_alone(tmp_path: Path) -> None:
    records = [record(number, ["one"], [[]]) for number in range(400)]
    there = read_human(write(tmp_path / "in", records), "break").splits
    back = read_human(write(tmp_path / "back", records[::-1]), "break").splits
    for split in SPLITS:
        assert {row["id"] for row in there[split]} == {row["id"] for row in back[split]}
    assert 20 < len(there["test"]) < 60
    assert 20 < len(there["validation"]) < 60


def test_a_question_asked_twice_is_kept_once(tmp_path: Path) -> None:
    records = [{**record(number, ["one"], [[]]), "question": "Who won?"} for number in range(9)]
    found = read_human(write(tmp_path / "in", records), "break")
    assert sum(map(len, found.splits.values())) == 1
    assert found.num_repeated == 8


def test_the_cap_holds_in_train_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "in", [record(number, ["one"], [[]]) for number in range(200)])
    free, capped = read_human(path, "break"), read_human(path, "break", max_train=30)
    assert len(capped.splits["train"]) == 30
    assert capped.num_over_cap == len(free.splits["train"]) - 30
    assert capped.splits["test"] == free.splits["test"]


@pytest.mark.parametrize("line", ["{", "[]", '{"id": 1}', '{"id": 1, "question": 2, "steps": []}'])
def test_a_broken_line_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "in").write_text("\n" + line + "\n")
    with pytest.raises(ConfigError, match="line 2: not a decomposition"):
        read_human(tmp_path / "in", "break")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the decompositions"):
        read_human(tmp_path / "none", "break")


@pytest.mark.parametrize("source", ["strategyqa", "break"])
def test_nearly_all_real_decompositions_are_plans(source: str) -> None:
    path = SHARED / f"{source}_decompositions.jsonl"
    if not path.is_file():
        pytest.skip(f"no {path.name}: the human decompositions are given by path")
    found = read_human(path, source)
    kept = [row for split in SPLITS for row in found.splits[split]]
    assert found.num_dropped < 0.05 * len(kept)
    for row in kept:
        parse_plan(row["plan"])
    questions = [{row["question"].casefold() for row in found.splits[split]} for split in SPLITS]
    assert sum(map(len, questions)) == len(set.union(*questions))
