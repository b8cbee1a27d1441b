"""The item banks: known answers, enough wordings, nothing shared between the splits."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from compllm.build_scripts.datasets.bank import DOMAINS, Bank, read_bank
from compllm.build_scripts.datasets.kinds import SPLITS, Kind
from compllm.build_scripts.datasets.wordings import read_joiners, read_wordings


@pytest.fixture(scope="module")
def bank() -> Bank:
    return read_bank(36)


def kind_of(bank: Bank, name: str) -> Kind:
    return next(kind for kind in bank.kinds if kind.name == name)


@pytest.mark.parametrize(
    ("name", "operands", "answer"),
    [
        ("atomic_number", ("iron",), "26"),
        ("symbol", ("sodium",), "Na"),
        ("from_symbol", ("K",), "potassium"),
        ("from_number", ("6",), "carbon"),
        ("period", ("chlorine",), "3"),
        ("group", ("chlorine",), "17"),
        ("mass", ("copper",), "64"),
        ("class", ("silicon",), "metalloid"),
        ("class", ("neon",), "nonmetal"),
        ("state", ("bromine",), "liquid"),
        ("state", ("helium",), "gas"),
        ("state", ("carbon",), "solid"),
        ("next_element", ("argon",), "potassium"),
        ("valence", ("oxygen",), "6"),
        ("valence", ("helium",), "2"),
        ("valence", ("bromine",), "7"),
        ("block", ("titanium",), "d"),
        ("protons", ("gold",), None),
        ("codon_amino", ("A U G",), "methionine"),
        ("codon_amino", ("U A A",), None),
        ("num_codons", ("leucine",), "6"),
        ("num_codons", ("tryptophan",), "1"),
        ("one_letter", ("lysine",), "K"),
        ("three_letter", ("glutamine",), "Gln"),
        ("from_letter", ("W",), "tryptophan"),
        ("from_three", ("Asn",), "asparagine"),
        ("complement", ("A T G C",), "T A C G"),
        ("transcribe", ("A T G C",), "A U G C"),
        ("codon_of_triplet", ("T T A",), "U U A"),
        ("anticodon", ("A U G",), "U A C"),
        ("stop_codon", ("U G A",), "yes"),
        ("stop_codon", ("U G G",), "no"),
        ("gc_count", ("A G C G T",), "3"),
        ("length", ("A T G",), "3"),
        ("hydrophobic", ("valine",), "yes"),
        ("hydrophobic", ("serine",), "no"),
        ("charge", ("arginine",), "positive"),
        ("charge", ("glutamic acid",), "negative"),
        ("charge", ("tyrosine",), "neutral"),
        ("weight", ("glycine",), "75"),
        ("addition", ("26", "6"), "32"),
        ("subtraction", ("26", "6"), "20"),
        ("subtraction", ("6", "26"), None),
        ("multiplication", ("7", "8"), "56"),
        ("double", ("26",), "52"),
        ("half", ("26",), "13"),
        ("half", ("27",), None),
        ("square", ("12",), "144"),
        ("larger", ("26", "149"), "149"),
        ("smaller", ("26", "149"), "26"),
        ("is_greater", ("6", "26"), "no"),
        ("is_even", ("26",), "yes"),
        ("parity", ("27",), "odd"),
        ("divisible", ("35", "5"), "yes"),
        ("divisible", ("35", "3"), None),
        ("remainder", ("27", "10"), "7"),
        ("next_number", ("99",), "100"),
        ("previous_number", ("100",), "99"),
        ("digit_sum", ("49",), "13"),
        ("maximum", ("6", "26", "2"), "26"),
        ("minimum", ("6", "26", "2"), "2"),
        ("maximum", ("6", "6", "2"), None),
    ],
)
def test_kinds_answer_exactly_or_refuse(
    bank: Bank, name: str, operands: tuple[str, ...], answer: str | None
) -> None:
    kind = kind_of(bank, name)
    assert (kind.answer(operands) if kind.accepts(operands) else None) == answer


def test_there_are_over_forty_kinds_in_three_domains(bank: Bank) -> None:
    assert len({kind.name for kind in bank.kinds}) == len(bank.kinds) > 40
    assert all(len(bank.of(domain)) >= 14 for domain in DOMAINS)


def test_every_kind_has_wordings_of_its_own_in_each_split(bank: Bank) -> None:
    for kind in bank.kinds:
        assert len(kind.wordings) >= 8, kind.name
        assert len(kind.in_split("train")) >= 5, kind.name
        assert len(kind.in_split("validation")) >= 1, kind.name
        assert len(kind.in_split("test")) >= 2, kind.name


def test_every_table_row_is_a_kind(bank: Bank) -> None:
    for domain in DOMAINS:
        assert set(read_wordings(domain)) == {kind.name for kind in bank.of(domain)}


def test_no_wording_is_written_twice(bank: Bank) -> None:
    asked = Counter(
        wording.question([f"<{slot}>" for slot in range(3)]).casefold()
        for kind in bank.kinds
        for wording in kind.wordings
    )
    assert [text for text, count in asked.items() if count > 1] == []


def test_wordings_use_exactly_their_operands(bank: Bank) -> None:
    for kind in bank.kinds:
        for wording in kind.wordings:
            slots = set(re.findall(r"\{(\w)\}", wording.text))
            assert slots == set("xyz"[: len(kind.takes)]), wording.id


def test_questions_fit_the_grammar_that_guides_the_generator(bank: Bank) -> None:
    for kind in bank.kinds:
        for wording in kind.wordings:
            question = wording.question(kind.items[0])
            assert re.fullmatch(r"[A-Z][^\n?|<>#]{1,150}\?", question), question


def test_an_operand_is_never_read_as_a_template(bank: Bank) -> None:
    wording = kind_of(bank, "addition").wordings[0]
    assert "{y}" in wording.fill(["{y}", "7"])


def test_generalising_kinds_keep_their_test_operands_out_of_train(bank: Bank) -> None:
    for kind in bank.kinds:
        items = {split: [i for i in kind.items if kind.belongs(i, split)] for split in SPLITS}
        if kind.is_split:
            assert set(items["train"]).isdisjoint(items["test"])
            assert set(items["train"]).isdisjoint(items["validation"])
            assert len(items["test"]) >= 5, kind.name
        else:
            assert items["train"] == items["test"] == list(kind.items)


def test_drawn_items_are_those_of_the_split(bank: Bank) -> None:
    for kind in bank.kinds:
        for split in SPLITS:
            drawn = kind.items_of(split)
            assert drawn
            assert all(kind.belongs(item, split) for item in drawn)


def test_operands_in_another_order_stay_in_their_split(bank: Bank) -> None:
    addition = kind_of(bank, "addition")
    for x, y in addition.items[:500]:
        assert addition.split_of((x, y)) == addition.split_of((y, x))


def test_joiners_are_not_shared_between_splits() -> None:
    seen: set[object] = set()
    for split in SPLITS:
        joiners = read_joiners(split)
        here = {*joiners.questions, *joiners.nouns, *joiners.ask, *joiners.shared}
        assert seen.isdisjoint(here)
        seen |= here
    train = read_joiners("train")
    assert len({*train.questions, *train.nouns}) >= 20


def test_yes_and_no_are_balanced_where_recall_does_not_decide(bank: Bank) -> None:
    for name in ("is_greater", "is_even", "divisible"):
        kind = kind_of(bank, name)
        yes = sum(kind.answer(item) == "yes" for item in kind.items) / len(kind.items)
        assert 0.4 < yes < 0.6, name
