"""The biology kinds: the genetic code, amino acids and short strands, from Biopython.

Bases are spelled apart ("A U G"), so that each is a token of its own.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from compllm.build_scripts.datasets.kinds import Kind, Operands, Wording
from compllm.build_scripts.datasets.wordings import read_wordings

# IUPAC names of the twenty standard amino acids; Biopython has only their codes.
AMINO_NAMES = {
    "A": "alanine", "C": "cysteine", "D": "aspartic acid", "E": "glutamic acid",
    "F": "phenylalanine", "G": "glycine", "H": "histidine", "I": "isoleucine", "K": "lysine",
    "L": "leucine", "M": "methionine", "N": "asparagine", "P": "proline", "Q": "glutamine",
    "R": "arginine", "S": "serine", "T": "threonine", "V": "valine", "W": "tryptophan",
    "Y": "tyrosine",
}  # fmt: skip
_BASES = "ACGT"
_NEUTRAL_PH = 7.0


def biology_kinds() -> tuple[Kind, ...]:
    kind = partial(_kind, read_wordings("biology"))
    return (
        *_names_and_codes(kind),
        *_copied_strands(kind),
        *_codons(kind),
        *_counted_strands(kind),
        *_amino_acids(kind),
    )


_LETTERS = {name: letter for letter, name in AMINO_NAMES.items()}
_NAMES = tuple(_LETTERS)


def _kind(
    wordings: Mapping[str, tuple[Wording, ...]],
    name: str,
    takes: str,
    gives: str,
    asked: Iterable[str],
    solve: Callable[[str], str],
    exposures: float = 12,
    *,
    dependent: float = 0.25,
    weight: float = 1.0,
    is_open: bool = False,  # any strand is an item, those of validation and test are unseen
) -> Kind:
    items: tuple[Operands, ...] = tuple((each,) for each in asked)
    return Kind(
        name, "biology", (takes,), gives, items, solve, wordings[name], is_split=is_open,
        exposures=exposures, dependent=dependent, weight=weight,
        accepts_more=_is_strand if is_open else None,
    )  # fmt: skip


def _names_and_codes(kind: Callable[..., Kind]) -> Iterator[Kind]:
    """Amino acids of codons, their letters and their three letters."""
    from Bio.Data import CodonTable, IUPACData

    code = CodonTable.unambiguous_rna_by_name["Standard"]
    to_amino = {
        spell(codon): AMINO_NAMES[letter] for codon, letter in sorted(code.forward_table.items())
    }
    three = {name: IUPACData.protein_letters_1to3[letter] for name, letter in _LETTERS.items()}
    from_three = {code: name for name, code in three.items()}
    num_codons = {name: str(sum(each == name for each in to_amino.values())) for name in _NAMES}
    of_letter = AMINO_NAMES.__getitem__
    yield kind("codon_amino", "codon", "amino", to_amino, to_amino.__getitem__, 24, weight=3)
    yield kind("num_codons", "amino", "number", _NAMES, num_codons.__getitem__, 30, weight=4)
    yield kind("one_letter", "amino", "letter", _NAMES, _LETTERS.__getitem__, 16, weight=2)
    yield kind("three_letter", "amino", "three", _NAMES, three.__getitem__, 14)
    yield kind("from_letter", "letter", "amino", AMINO_NAMES, of_letter, 18, weight=2)
    yield kind("from_three", "three", "amino", from_three, from_three.__getitem__, 14)


def _copied_strands(kind: Callable[..., Kind]) -> Iterator[Kind]:
    strands = _strands(range(4, 7), 1500)
    yield kind(
        "complement", "dna", "dna", strands, _reads("complement"), 0.7, is_open=True, weight=1.5
    )
    yield kind(
        "transcribe", "dna", "rna", strands, _reads("transcribe"), 0.5, dependent=0, is_open=True
    )


def _codons(kind: Callable[..., Kind]) -> Iterator[Kind]:
    from Bio.Data import CodonTable

    code = CodonTable.unambiguous_rna_by_name["Standard"]
    codons = [spell("".join(bases)) for bases in itertools.product("ACGU", repeat=3)]
    stops = {spell(codon) for codon in code.stop_codons}
    triplets = [spell("".join(bases)) for bases in itertools.product(_BASES, repeat=3)]
    yield kind("codon_of_triplet", "triplet", "codon", triplets, _reads("transcribe"), 6)
    yield kind("anticodon", "codon", "anticodon", codons, _reads("complement_rna"), 8)
    # Three of 64 are stop codons: asked as often as a dozen others, or "no" is always right.
    asked = [*codons, *(each for each in codons if each in stops for _ in range(9))]
    yield kind(
        "stop_codon", "codon", "yes/no", asked, lambda codon: "yes" if codon in stops else "no", 6
    )


def _counted_strands(kind: Callable[..., Kind]) -> Iterator[Kind]:
    """Counting is what a small model does worst: up to six bases, as one takes in at a glance."""
    from Bio.SeqUtils import gc_fraction

    fraction: Callable[[str], float] = gc_fraction

    def gc_count(strand: str) -> str:
        bases = strand.replace(" ", "")
        return str(round(fraction(bases) * len(bases)))

    def length(strand: str) -> str:
        return str(len(strand.split()))

    shorter, longer = _strands(range(3, 6), 900), _strands(range(3, 7), 600)
    yield kind("gc_count", "dna", "number", shorter, gc_count, 1.2, is_open=True, weight=1.5)
    yield kind("length", "dna", "number", longer, length, 1.4, is_open=True)


def _amino_acids(kind: Callable[..., Kind]) -> Iterator[Kind]:
    """Properties of amino acids."""
    from Bio.Data import IUPACData
    from Bio.SeqUtils import IsoelectricPoint, ProtParamData

    def is_hydrophobic(name: str) -> str:
        return "yes" if ProtParamData.kd[_LETTERS[name]] > 0 else "no"

    def charge(name: str) -> str:
        letter = _LETTERS[name]
        if IsoelectricPoint.positive_pKs.get(letter, 0) > _NEUTRAL_PH:
            return "positive"
        is_acid = IsoelectricPoint.negative_pKs.get(letter, 14) < _NEUTRAL_PH
        return "negative" if is_acid else "neutral"

    def weight(name: str) -> str:
        return str(round(IUPACData.protein_weights[_LETTERS[name]]))

    yield kind("hydrophobic", "amino", "yes/no", _NAMES, is_hydrophobic, 16)
    yield kind("charge", "amino", "charge", _NAMES, charge, 16)
    yield kind("weight", "amino", "number", _NAMES, weight, 24)


def _reads(method: str) -> Callable[[str], str]:
    """A method of Biopython's Seq on bases spelled apart."""
    from Bio.Seq import Seq

    def solve(strand: str) -> str:
        sequence: Any = Seq(strand.replace(" ", ""))
        return spell(str(getattr(sequence, method)()))

    return solve


def spell(bases: str) -> str:
    return " ".join(bases)


def _is_strand(operands: Operands) -> bool:
    bases = operands[0].split()
    return 3 <= len(bases) <= 6 and all(base in _BASES for base in bases)


def _strands(lengths: range, count: int) -> list[str]:
    """Different random strands, the same on every run."""
    rng = random.Random(f"strands {lengths} {count}")
    found: dict[str, None] = {}
    for index in itertools.cycle(lengths):
        if len(found) == count:
            return list(found)
        found[spell("".join(rng.choices(_BASES, k=index)))] = None
    raise AssertionError("unreachable")
