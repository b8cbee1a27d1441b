"""What plans ask of a thing, for the experts in chemistry and biology.

The wordings are those of the templates' lines ("Which period contains iron?", "Is #1 a metal?").
The thing is named, or it is an answer of an earlier line. refresh.py adds these rows.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

from compllm.build_scripts.datasets.bank import Bank
from compllm.build_scripts.datasets.forms import read_facts, tables_of
from compllm.build_scripts.datasets.heavy import heavy_kinds
from compllm.build_scripts.datasets.kinds import Kind, Split
from compllm.build_scripts.datasets.rows import Parents, Row, expert_row, referred
from compllm.build_scripts.datasets.spoken import maybe_spoken, respelled
from compllm.prompts import UNKNOWN

_SHARE_REFERRED = 0.4  # of the rows whose thing an earlier line names
_ROWS_A_WORDING = {"train": 34, "validation": 1, "test": 1}
_ROWS_OF_YES_OR_NO = {"train": 90, "validation": 2, "test": 2}
_SPELLED = ("codon", "dna", "triplet")
_UNKNOWN_CODONS = {"train": 60, "validation": 5, "test": 5}
_OTHER_SPELLINGS = {"train": 5, "validation": 0, "test": 0}  # rows of each element and wording
_UNKNOWN_SYMBOLS = {"train": 90, "validation": 5, "test": 5}
_STOPS = ("UAA", "UAG", "UGA")
_ROWS_OF_STOPS = {"train": 25, "validation": 1, "test": 1}  # of each
_COUNTED = {"train": 1200, "validation": 12, "test": 12}
_BASES = "ACGT"


def asked_rows(bank: Bank, domain: str, split: Split, rng: random.Random) -> list[Row]:
    rows = [
        _row(bank, kind, text, split, rng)
        for kind in bank.of(domain)
        for text in tables_of("asked").get(kind.name, ())
        for _ in range(_ROWS_A_WORDING[split])
    ]
    of_chemistry = (_yes_or_no, _also_written, _no_symbols)
    for more in of_chemistry if domain == "chemistry" else (_no_codons, _stops, _counted):
        rows += more(bank, split, rng)
    return rows


def _row(bank: Bank, kind: Kind, text: str, split: Split, rng: random.Random) -> Row:
    (thing,) = rng.choice(kind.items_of(split))
    asked, parents = _perhaps_referred(bank, kind.takes[0], thing, split, rng)
    question = text.format(x=asked if parents else _written(kind, thing, rng))
    if not parents:
        question = maybe_spoken(rng, question, split)
    return expert_row(kind.domain, f"asked_{kind.name}", question, kind.answer((thing,)), parents)


def _perhaps_referred(
    bank: Bank, type_of: str, thing: str, split: Split, rng: random.Random
) -> tuple[str, Parents]:
    """The thing, or the line of a plan that names it, with what that line said."""
    sources = bank.sources(type_of, thing)
    if not sources or rng.random() >= _SHARE_REFERRED:
        return thing, []
    kind, operands = rng.choice(sources)
    question = rng.choice(kind.in_split(split)).question(operands)
    (asked,), parents = referred(rng, (thing,), {0: question})
    return asked, parents


def _written(kind: Kind, thing: str, rng: random.Random) -> str:
    """Bases as people write them, where the answer is not spelled in bases itself."""
    is_spelled = kind.takes[0] in _SPELLED and kind.gives not in ("dna", "rna", "anticodon")
    return respelled(rng, thing) if is_spelled else thing


def _yes_or_no(bank: Bank, split: Split, rng: random.Random) -> Iterator[Row]:
    """As many of "yes" as of "no", of the bank's elements and the well-known heavy ones."""
    kinds = [*bank.of("chemistry"), *heavy_kinds(bank)]
    for text, name, wanted in tables_of("is_so")["all"]:
        found = {
            thing: kind.answer((thing,))
            for kind in kinds
            if kind.name == name
            for (thing,) in kind.items
        }
        so = [thing for thing, answer in found.items() if answer == wanted]
        others = [thing for thing, answer in found.items() if answer != wanted]
        if not so or not others:
            continue  # a small bank: no element of its own is liquid
        for number in range(_ROWS_OF_YES_OR_NO[split]):
            thing = rng.choice((so, others)[number % 2])
            asked, parents = _perhaps_referred(bank, "element", thing, split, rng)
            answer = ("yes", "no")[number % 2]
            yield expert_row("chemistry", "is_so", text.format(x=asked), answer, parents)


def _also_written(bank: Bank, split: Split, rng: random.Random) -> Iterator[Row]:
    """The bank's elements in their other spelling: "aluminium"."""
    for kind in [*bank.of("chemistry"), *heavy_kinds(bank)]:
        for name, other in read_facts()["also_written"]:
            if (name,) not in kind.items:
                continue
            for text in tables_of("asked").get(kind.name, ()):
                for _ in range(_OTHER_SPELLINGS[split]):
                    question = maybe_spoken(rng, text.format(x=other), split)
                    answer = kind.answer((name,))
                    yield expert_row("chemistry", f"asked_{kind.name}", question, answer)


def _counted(bank: Bank, split: Split, rng: random.Random) -> Iterator[Row]:
    """Gs and Cs of four to six bases: the bank's own strands have at most five."""
    (kind,) = (each for each in bank.of("biology") if each.name == "gc_count")
    texts = tables_of("asked")["gc_count"]
    rows = 0
    while rows < _COUNTED[split]:
        strand = " ".join(rng.choices(_BASES, k=rng.choice((4, 5, 6, 6))))
        if kind.belongs((strand,), split):
            rows += 1
            question = rng.choice(texts).format(x=respelled(rng, strand))
            question = maybe_spoken(rng, question, split)
            yield expert_row("biology", "counted", question, kind.answer((strand,)))


def _no_codons(bank: Bank, split: Split, rng: random.Random) -> Iterator[Row]:
    """Three letters that are no codon: thymine is a base of DNA, others are no bases at all."""
    texts = tables_of("asked")["codon_amino"] + tables_of("asked")["anticodon"]
    strange = ["".join(each) for each in itertools.product("AUGCTXZQ", repeat=3)]
    wrong = [each for each in strange if "T" in each or set(each) & set("XZQ")]
    for _ in range(_UNKNOWN_CODONS[split]):
        bases = rng.choice(wrong)
        written = rng.choice((" ".join(bases), " ".join(bases), bases))
        yield expert_row("biology", "no_codon", rng.choice(texts).format(x=written), UNKNOWN)


def _stops(bank: Bank, split: Split, rng: random.Random) -> Iterator[Row]:
    """Stop codons encode nothing: without these, an amino acid was made up for them."""
    for bases in _STOPS:
        for _ in range(_ROWS_OF_STOPS[split]):
            text = rng.choice(tables_of("asked")["codon_amino"])
            question = maybe_spoken(rng, text.format(x=respelled(rng, " ".join(bases))), split)
            yield expert_row("biology", "stop_amino", question, "none, it is a stop codon")


def _no_symbols(bank: Bank, split: Split, rng: random.Random) -> Iterator[Row]:
    """Letters that are no element's symbol."""
    from mendeleev.fetch import fetch_table

    known = set(fetch_table("elements")["symbol"])
    pairs = (f"{a}{b}" for a in "ABDEGJKLQRTVWXYZ" for b in "abdhjkqvwxz")
    strange = sorted(set(pairs) - known)
    texts = tables_of("asked")["from_symbol"]
    for _ in range(_UNKNOWN_SYMBOLS[split]):
        question = rng.choice(texts).format(x=rng.choice(strange))
        yield expert_row("chemistry", "no_symbol", question, UNKNOWN)
