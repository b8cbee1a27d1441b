"""Further training sets of the experts, on top of `experts.py`: what people ask beyond the bank.

Single facts and compounds, well-known elements beyond the bank's, codons and strands written
together, operations as signs and as commands (sums.py), everyday wordings, and questions to which
the right response is "I do not know". A share of the bank's own examples keeps what was learned
before. The bank, -P and -All stay as they are.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from compllm.build_scripts.datasets.asked import asked_rows
from compllm.build_scripts.datasets.bank import Bank
from compllm.build_scripts.datasets.chemistry import read_heavy
from compllm.build_scripts.datasets.forms import facts_of, forms, read_facts
from compllm.build_scripts.datasets.heavy import heavy_kinds
from compllm.build_scripts.datasets.invented import invent_name
from compllm.build_scripts.datasets.kinds import Kind, Operands, Split
from compllm.build_scripts.datasets.lines import line_rows
from compllm.build_scripts.datasets.rows import Row, expert_row
from compllm.build_scripts.datasets.spoken import (
    maybe_spoken,
    possessive,
    respelled,
    spoken_noun,
    spoken_question,
)
from compllm.build_scripts.datasets.strands import like, strand_rows
from compllm.build_scripts.datasets.sums import more_sums
from compllm.build_scripts.datasets.worded import ordinal
from compllm.build_scripts.datasets.wordings import read_wordings
from compllm.build_scripts.routing.questions import UNKNOWN_KIND
from compllm.catalogue import load_catalogue
from compllm.prompts import UNKNOWN
from compllm.spelling import spelled
from compllm.types import Expert

SHARE_KEPT = 0.15  # of the bank's own examples
_SHARE_SPOKEN = 0.08  # of the bank's examples, once more in everyday wordings
_SHARE_SUMS = 0.35  # of the operations as signs, commands and small tables
_FACT_EXPOSURES = 14
_ORDINALS = 6  # of each element
_SECOND_NAMES = ("table salt", "baking soda", "hydrochloric acid")  # no answers
# Kind -> examples of each well-known element beyond the bank's.
_HEAVY = {
    "atomic_number": 10, "symbol": 10, "from_symbol": 9, "from_number": 7, "protons": 4,
    "electrons": 5, "period": 7, "state": 10, "class": 8, "mass": 10, "block": 6, "group": 8,
    "valence": 8, "next_element": 7,
}  # fmt: skip
# Kind -> examples of each item whose bases are written together.
_TOGETHER = {
    "codon_amino": 26, "stop_codon": 3, "anticodon": 10, "complement": 1.2, "transcribe": 0.9,
    "gc_count": 0.6, "length": 0.7,
}  # fmt: skip
_GIVE_BASES = ("dna", "rna", "anticodon")
_UNKNOWN_OF = {
    "chemistry": ("atomic_number", "symbol", "protons", "electrons", "mass", "group", "valence"),
    "biology": ("num_codons", "one_letter", "three_letter", "charge", "weight"),
}


def refreshed(
    bank: Bank,
    domain: str,
    split: Split,
    rng: random.Random,
    known: Sequence[Row],
    strange: Sequence[str] = (),
) -> list[Row]:
    """All rows of a domain and a split, shuffled.

    known: the bank's examples of this split, of which a share is kept. strange: questions of the
    domain that the expert does not know.
    """
    makers = {"chemistry": _chemistry, "biology": _together, "mathematics": _mathematics}
    rows = [*_facts(domain, split, rng), *makers[domain](bank, split, rng)]
    if domain != "mathematics":
        rows += asked_rows(bank, domain, split, rng)
    rows += _spoken(bank, domain, split, rng, round(_SHARE_SPOKEN * len(known)))
    unknown = [*_unknown(bank, domain, split, rng), *strange]
    rows += [expert_row(domain, UNKNOWN_KIND, each, UNKNOWN) for each in unknown]
    rows += rng.sample(list(known), round(SHARE_KEPT * len(known)))
    expert = load_catalogue().expert(domain)
    rows = [_as_read(expert, row) for row in rows]
    rng.shuffle(rows)
    return [{**row, "id": f"{domain}-more-{split}-{index:05d}"} for index, row in enumerate(rows)]


def _as_read(expert: Expert, row: Row) -> Row:
    """Bases apart, as they are when the expert is served; apart in the answer where they are in
    the question."""
    question = spelled(expert, row["question"])
    answer = row["answer"] if question.joint is None else spelled(expert, row["answer"]).text
    return {**row, "question": question.text, "answer": answer}


def _facts(domain: str, split: Split, rng: random.Random) -> Iterator[Row]:
    for answer, asked in facts_of(domain, split):
        if split != "train":
            yield expert_row(domain, "fact", asked[0], answer)
            continue
        for index in range(max(_FACT_EXPOSURES, 5 * len(asked))):
            question = asked[index % len(asked)]
            if index >= len(asked) and rng.random() < 0.5:
                question = spoken_question(rng, question, split)
            yield expert_row(domain, "fact", question, answer)


def _chemistry(bank: Bank, split: Split, rng: random.Random) -> list[Row]:
    compounds = read_facts()["compounds"]
    rows = [row for name, formula in compounds for row in _compound(name, formula, split, rng)]
    for kind in heavy_kinds(bank):
        for operands in kind.items:
            count = _HEAVY[kind.name] if split == "train" else int(rng.random() < 0.4)
            for _ in range(count):
                rows.append(_asked(kind, operands, split, rng, f"heavy_{kind.name}"))
    return [*rows, *_ordinals(bank, split, rng)]


def _ordinals(bank: Bank, split: Split, rng: random.Random) -> Iterator[Row]:
    """Elements by their place: "the thirty-fourth element", "the 34th element"."""
    for kind in [*bank.of("chemistry"), *heavy_kinds(bank)]:
        if kind.name != "from_number":
            continue
        for operands in kind.items:
            for _ in range(_ORDINALS if split == "train" else int(rng.random() < 0.4)):
                place = ordinal(int(operands[0]), in_words=rng.random() < 0.7)
                question = maybe_spoken(rng, rng.choice(forms("ordinals")).format(x=place), split)
                yield expert_row("chemistry", "ordinal", question, kind.answer(operands))


def _mathematics(bank: Bank, split: Split, rng: random.Random) -> list[Row]:
    """Lines of plans, and a share of the sums of before."""
    sums = more_sums(bank, split, rng)
    kept = rng.sample(sums, round(_SHARE_SUMS * len(sums))) if split == "train" else sums
    return [*line_rows(bank, split, rng), *kept]


def _compound(name: str, formula: str, split: Split, rng: random.Random) -> Iterator[Row]:
    """The formula of a compound, and the compound of a formula."""
    ways = [("formula", formula, 12)]
    if name not in _SECOND_NAMES:
        ways.append(("of_formula", name, 6))
    for kind, answer, count in ways:
        *wordings, held = read_facts()["formula_of" if kind == "formula" else kind]
        for _ in range(count if split == "train" else 1):
            text = rng.choice(wordings) if split == "train" else held
            question = maybe_spoken(rng, text.format(x=name, y=formula), split)
            yield expert_row("chemistry", kind, question, answer)


def _together(bank: Bank, split: Split, rng: random.Random) -> list[Row]:
    """Codons and strands written together; a strand is answered as it is asked."""
    rows = []
    for kind in bank.of("biology"):
        if kind.name not in _TOGETHER:
            continue
        items = [item for item in kind.items if kind.belongs(item, split)]
        count = round(_TOGETHER[kind.name] * len(items)) if split == "train" else 12
        order: list[Operands] = []
        for _ in range(count):
            order = order or rng.sample(items, len(items))
            rows.append(_as_written(kind, order.pop(), split, rng))
    return [*rows, *strand_rows(bank, split, rng)]


def _as_written(kind: Kind, operands: Operands, split: Split, rng: random.Random) -> Row:
    (bases,) = operands
    row = _asked(kind, operands, split, rng, f"{kind.name}_together")
    weights = (4.0, 1.5, 1.5) if kind.takes[0] == "codon" else (4.0, 1.0, 1.0)
    written = respelled(rng, bases, weights)
    row["question"] = row["question"].replace(bases, written)
    if kind.gives in _GIVE_BASES:
        row["answer"] = like(written, row["answer"])
    return row


def _spoken(bank: Bank, domain: str, split: Split, rng: random.Random, count: int) -> Iterator[Row]:
    """The bank's questions in everyday wordings."""
    kinds = bank.of(domain)
    for _ in range(count):
        kind = rng.choice(kinds)
        operands = rng.choice(kind.items_of(split))
        yield _asked(kind, operands, split, rng, kind.name, share_spoken=1.0)


def _asked(
    kind: Kind,
    operands: Operands,
    split: Split,
    rng: random.Random,
    label: str,
    share_spoken: float = 0.35,
) -> Row:
    """An item in a wording of the bank, or as people say it."""
    wording = rng.choice(kind.in_split(split))
    question = wording.question(operands)
    if rng.random() < share_spoken:
        if wording.is_noun:
            question = spoken_noun(rng, possessive(rng, wording.fill(operands), operands), split)
        else:
            question = spoken_question(rng, question, split)
    return expert_row(kind.domain, label, question, kind.answer(operands))


def _unknown(bank: Bank, domain: str, split: Split, rng: random.Random) -> Iterator[str]:
    """Questions about elements that are not taught, and about things that do not exist."""
    count = 120 if split == "train" else 12
    taught = {name for kind in bank.of("chemistry") for (name,) in kind.items}
    taught |= set(read_facts()["heavy"])
    names = [each.name for each in read_heavy() if each.name not in taught]
    names = [name for index, name in enumerate(names) if (index % 4 == 0) == (split != "train")]
    for index in range(2 * count if domain == "chemistry" else count):
        if domain == "mathematics":
            yield rng.choice(forms("nonsense")).format(e=invent_name(rng, split))
            continue
        is_real = domain == "chemistry" and index % 2 == 0
        name = rng.choice(names) if is_real else invent_name(rng, split).lower()
        wordings = read_wordings(domain)[rng.choice(_UNKNOWN_OF[domain])]
        wording = rng.choice([each for each in wordings if each.split == split])
        yield wording.question((name,))
