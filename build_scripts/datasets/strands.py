"""Reverse complements, transcripts and base counts of short DNA strands, for the expert in biology.

The strands are those of the bank's kinds that count or pair bases, three to six long. refresh.py
adds these rows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from compllm.build_scripts.datasets.bank import Bank
from compllm.build_scripts.datasets.forms import read_facts
from compllm.build_scripts.datasets.kinds import Kind, Split
from compllm.build_scripts.datasets.rows import Row, expert_row
from compllm.build_scripts.datasets.spoken import maybe_spoken, respelled

_NAMES = {"A": "adenine", "C": "cytosine", "G": "guanine", "T": "thymine"}
_FROM = ("length", "complement")  # kinds whose strands are asked for
_ROWS = {"train": 2400, "validation": 8, "test": 8}
_ROWS_OF_COUNTS = {"train": 1500, "validation": 8, "test": 8}
_WEIGHTS = (4.0, 1.0, 1.0)  # bases together, small, with hyphens


def strand_rows(bank: Bank, split: Split, rng: random.Random) -> Iterator[Row]:
    """A strand is answered as it is written; the last wording is for validation and test."""
    from Bio.Seq import Seq

    kinds = [kind for kind in bank.of("biology") if kind.name in _FROM]
    methods = {"reverse_complement": "reverse_complement", "transcript": "complement_rna"}
    for name, method in methods.items():
        *wordings, held = read_facts()[name]
        for _ in range(_ROWS[split]):
            (strand,) = rng.choice(rng.choice(kinds).items_of(split))
            written = respelled(rng, strand, _WEIGHTS)
            text = (rng.choice(wordings) if split == "train" else held).format(x=written)
            sequence: Any = Seq(strand.replace(" ", ""))
            answer = like(written, str(getattr(sequence, method)()))
            yield expert_row("biology", name, maybe_spoken(rng, text, split), answer)
    yield from _base_counts(kinds, split, rng)


def _base_counts(kinds: Sequence[Kind], split: Split, rng: random.Random) -> Iterator[Row]:
    """How often one base is in a strand; the expert had only counted G and C together."""
    *wordings, held = read_facts()["base_count"]
    for _ in range(_ROWS_OF_COUNTS[split]):
        (strand,) = rng.choice(rng.choice(kinds).items_of(split))
        base = rng.choice("ACGT")
        said = _NAMES[base] if rng.random() < 0.2 else base
        text = rng.choice(wordings) if split == "train" else held
        question = text.format(x=respelled(rng, strand, _WEIGHTS), b=said)
        count = strand.count(base)
        yield expert_row("biology", "base_count", maybe_spoken(rng, question, split), str(count))


def like(written: str, answer: str) -> str:
    """The bases of the answer as those of the question are written."""
    together = answer.replace(" ", "")
    if "-" in written:
        return "-".join(together)
    return together.lower() if written.islower() else together
