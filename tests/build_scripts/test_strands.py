"""Reverse complements: right, written as asked, with a wording that training does not have."""

from __future__ import annotations

import random
import re

import pytest

from compllm.build_scripts.datasets.bank import Bank, read_bank
from compllm.build_scripts.datasets.forms import read_facts
from compllm.build_scripts.datasets.kinds import SPLITS, Split
from compllm.build_scripts.datasets.strands import reverse_complement_rows

PAIRS = str.maketrans("ACGTacgt", "TGCAtgca")
STRAND = re.compile(
    r"(?<![A-Za-z-])(?:[ACGT]{3,6}|[acgt]{3,6}|[ACGT](?:-[ACGT]){2,5})(?![A-Za-z-])"
)


@pytest.fixture(scope="module")
def bank() -> Bank:
    return read_bank(36)


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_is_the_complement_read_backwards(bank: Bank, split: Split) -> None:
    rows = list(reverse_complement_rows(bank, split, random.Random(0)))
    assert rows
    for row in rows:
        (strand,) = STRAND.findall(row["question"])
        assert row["answer"] == strand.translate(PAIRS)[::-1]


def test_the_last_wording_is_held_out(bank: Bank) -> None:
    held = read_facts()["reverse_complement"][-1].partition("{")[0].lower()
    for split in SPLITS:
        rows = reverse_complement_rows(bank, split, random.Random(0))
        has_held = [held in row["question"].lower() for row in rows]
        assert not any(has_held) if split == "train" else all(has_held)
