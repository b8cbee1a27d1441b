"""The sets as they are written: what one split has, no other has."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from compllm.build_scripts.datasets.bank import DOMAINS
from compllm.build_scripts.datasets.expressions import leaves
from compllm.build_scripts.datasets.kinds import SPLITS
from compllm.build_scripts.datasets.sets import Settings, Sizes, make_sets
from compllm.build_scripts.make_datasets import write_sets

PAIRS = list(combinations(SPLITS, 2))
SIZES = Sizes(
    composites=(150, 50, 50),
    generator=(10, 10),
    invented=4,
    singles=(10, 5, 5),
    aggregator=(10, 5, 5),
    aggregator_more=(8, 4, 4),
    per_kind=(1, 1),
    everyday=(30, 10, 10),
    ordinary=(30, 10, 10),
)


SETTINGS = Settings(num_elements=18, sizes=SIZES)


@pytest.fixture(scope="module")
def files() -> dict[str, list[dict[str, Any]]]:
    return make_sets(SETTINGS)[0]


@pytest.mark.parametrize("name", ["p", "all"])
@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_no_split_has_a_composition_of_another_in_whatever_order(
    files: dict[str, list[dict[str, Any]]], name: str, one: str, two: str
) -> None:
    """The sum of A and B was in training where that of B and A was in the test."""

    def shapes(split: str) -> set[str]:
        return {_shape(row) for row in files[f"{name}/{split}.jsonl"]}

    assert len(shapes(one)) > 20
    assert not shapes(one) & shapes(two)


@pytest.mark.parametrize("name", ["p", "all"])
@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_no_split_has_a_wording_or_a_question_of_another(
    files: dict[str, list[dict[str, Any]]], name: str, one: str, two: str
) -> None:
    ones, twos = files[f"{name}/{one}.jsonl"], files[f"{name}/{two}.jsonl"]
    assert not {row["question"] for row in ones} & {row["question"] for row in twos}
    wordings = [{each for row in rows for each in row["wordings"]} for rows in (ones, twos)]
    assert not wordings[0] & wordings[1]


def test_every_set_has_further_training_and_the_router_questions_for_no_expert(
    files: dict[str, list[dict[str, Any]]],
) -> None:
    more = {name.partition("/")[0] for name in files if "-more/" in name}
    assert more == {f"{name}-more" for name in (*DOMAINS, "generator", "aggregator")}
    assert [len(files[f"ordinary/{split}.jsonl"]) for split in SPLITS] == [30, 10, 10]
    assert all(files[f"{name}/train.jsonl"] for name in more)


def test_questions_without_an_answer_have_no_count_of_tokens(
    files: dict[str, list[dict[str, Any]]], tmp_path: Path, base_dir: Path
) -> None:
    manifest = write_sets(tmp_path / "out", files, SETTINGS, {}, base_dir)
    assert manifest["files"]["ordinary/train.jsonl"]["tokens"] is None
    assert manifest["files"]["generator-more/train.jsonl"]["tokens"] > 0


def _shape(row: dict[str, Any]) -> str:
    """Of the plan, by the kinds of its nodes: no order of nodes or operands is left."""
    parents = row["parents"]

    def of(node: int) -> str:
        return f"{row['kinds'][node]}({sorted(of(parent) for parent in parents[node])})"

    return str(sorted(of(leaf) for leaf in leaves(parents)))
