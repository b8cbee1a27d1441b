"""Strands: answers are right, written as asked, with a wording that training does not have."""

from __future__ import annotations

import random
import re

import pytest

from compllm.build_scripts.datasets.bank import Bank, read_bank
from compllm.build_scripts.datasets.forms import read_facts
from compllm.build_scripts.datasets.kinds import SPLITS, Split
from compllm.build_scripts.datasets.strands import strand_rows

PAIRS = str.maketrans("ACGTacgt", "TGCAtgca")
STRAND = re.compile(
    r"(?<![A-Za-z-])(?:[ACGT]{3,6}|[acgt]{3,6}|[ACGT](?:-[ACGT]){2,5})(?![A-Za-z-])"
)


@pytest.fixture(scope="module")
def bank() -> Bank:
    return read_bank(36)


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_is_the_complement_read_backwards_or_the_mrna(bank: Bank, split: Split) -> None:
    """The mRNA of a template strand pairs with it; it is not the strand with U for T."""
    rows = list(strand_rows(bank, split, random.Random(0)))
    assert {row["kind"] for row in rows} == {"reverse_complement", "transcript", "base_count"}
    for row in rows:
        if row["kind"] == "base_count":
            continue
        (strand,) = STRAND.findall(row["question"])
        paired = strand.translate(PAIRS)
        is_rna = row["kind"] == "transcript"
        wanted = paired.replace("T", "U").replace("t", "u") if is_rna else paired[::-1]
        assert row["answer"] == wanted


@pytest.mark.parametrize("split", SPLITS)
def test_a_base_is_counted(bank: Bank, split: Split) -> None:
    names = {"adenine": "A", "cytosine": "C", "guanine": "G", "thymine": "T"}
    asked = re.compile(r"\b(adenine|cytosine|guanine|thymine|[ACGT])(?:'?s)?\b")
    every = strand_rows(bank, split, random.Random(0))
    rows = [row for row in every if row["kind"] == "base_count"]
    for row in rows:
        (strand,) = STRAND.findall(row["question"])
        base = asked.findall(row["question"].replace(strand, ""))[-1]
        assert row["answer"] == str(strand.upper().count(names.get(base, base)))
    if split == "train":
        assert len({row["answer"] for row in rows}) > 3


@pytest.mark.parametrize("name", ["reverse_complement", "transcript", "base_count"])
def test_the_last_wording_is_held_out(bank: Bank, name: str) -> None:
    held = read_facts()[name][-1].partition("{")[0].lower()
    if name == "base_count":  # its end: others begin like it
        held = read_facts()[name][-1].partition("}")[2].partition("{")[0].lower()
    for split in SPLITS:
        rows = [row for row in strand_rows(bank, split, random.Random(0)) if row["kind"] == name]
        has_held = [held in row["question"].lower() for row in rows]
        assert not any(has_held) if split == "train" else all(has_held)
