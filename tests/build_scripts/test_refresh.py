"""Further training of the experts: facts agree, examples are taught, held-out wordings stay out."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Sequence

import pytest

from compllm.build_scripts.datasets.bank import DOMAINS, Bank, read_bank
from compllm.build_scripts.datasets.chemistry import read_heavy
from compllm.build_scripts.datasets.forms import forms, read_facts
from compllm.build_scripts.datasets.heavy import heavy_kinds
from compllm.build_scripts.datasets.kinds import SPLITS, Kind, Split
from compllm.build_scripts.datasets.refresh import SHARE_KEPT, refreshed
from compllm.build_scripts.datasets.rows import Row, expert_row
from compllm.build_scripts.datasets.sums import small_tables
from compllm.catalogue import load_catalogue
from compllm.prompts import UNKNOWN
from compllm.spelling import spelled

# Examples of the catalogue that the bank asks in other words: kind and operand.
IN_OTHER_WORDS = {
    "How many electrons does a neutral oxygen atom have?": ("electrons", "oxygen"),
    "Which group of the periodic table does chlorine belong to?": ("group", "chlorine"),
    "What is the one-letter code of the amino acid glycine?": ("one_letter", "glycine"),
}


@pytest.fixture(scope="module")
def bank() -> Bank:
    return read_bank(36)


@pytest.fixture(scope="module")
def sets(bank: Bank) -> dict[tuple[str, Split], list[Row]]:
    return {(domain, split): draw(bank, domain, split) for domain in DOMAINS for split in SPLITS}


def draw(bank: Bank, domain: str, split: Split, known: Sequence[Row] = ()) -> list[Row]:
    return refreshed(bank, domain, split, random.Random(f"{domain} {split}"), known)


def test_no_question_of_the_facts_has_two_answers() -> None:
    answers: dict[str, set[str]] = defaultdict(set)
    for domain in DOMAINS:
        for answer, *questions in read_facts()[domain]:
            assert len(questions) >= 4
            for question in questions:
                answers[question.lower()].add(answer)
    assert not {question for question, found in answers.items() if len(found) > 1}


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_plain_question_of_the_sets_has_two_answers(
    sets: dict[tuple[str, Split], list[Row]], domain: str
) -> None:
    answers: dict[str, set[str]] = defaultdict(set)
    for split in SPLITS:
        for row in sets[domain, split]:
            if not row["parents"]:
                answers[row["question"]].add(row["answer"])
    assert not {question: found for question, found in answers.items() if len(found) > 1}


def asks(kind: Kind, question: str) -> bool:
    """Whether a wording and an item of the kind give the question; bases may stand together."""
    for wording in kind.wordings:
        pattern = re.escape(wording.question(("<x>", "<y>", "<z>")))
        for slot in "xyz":  # the first is a group, and another of the same slot refers to it
            first, *others = pattern.split(f"<{slot}>")
            if others:
                pattern = f"{first}(?P<{slot}>.+){f'(?P={slot})'.join(others)}"
        found = re.fullmatch(pattern, question)
        if found:
            operands = tuple(value for _, value in sorted(found.groupdict().items()))
            spaced = tuple(" ".join(value) for value in operands)
            return kind.accepts(operands) or kind.accepts(spaced)
    return False


def asked_elsewhere(domain: str) -> set[str]:
    facts = read_facts()
    found = {question for _, *questions in facts[domain] for question in questions}
    if domain == "chemistry":
        found |= {
            form.format(x=name) for name, _ in facts["compounds"] for form in facts["formula_of"]
        }
    if domain == "mathematics":
        for table in small_tables():
            for text in forms(table.name, "tables"):
                found |= {
                    text.format(**dict(zip("xy", item, strict=False))) for item in table.items
                }
    return found


@pytest.mark.parametrize("domain", DOMAINS)
def test_every_example_question_of_the_catalogue_is_taught(bank: Bank, domain: str) -> None:
    """Only 4 of 20 examples were answered rightly: what a page shows has to be in the sets."""
    catalogue = load_catalogue(None)
    names = [expert.name for expert in catalogue.experts]
    examples = catalogue.examples[names.index(domain)]
    kinds = [*bank.of(domain), *(heavy_kinds(bank) if domain == "chemistry" else ())]
    known = asked_elsewhere(domain)
    assert len(examples) > 20
    own = [text for text in examples if "#" not in text and text not in known]
    missing = {text for text in own if not any(asks(kind, text) for kind in kinds)}
    for text in missing & set(IN_OTHER_WORDS):
        name, operand = IN_OTHER_WORDS[text]
        assert any(kind.accepts((operand,)) for kind in kinds if kind.name == name)
    assert missing <= set(IN_OTHER_WORDS)


@pytest.mark.parametrize("domain", DOMAINS)
def test_held_out_wordings_of_facts_are_in_no_training_question(
    sets: dict[tuple[str, Split], list[Row]], domain: str
) -> None:
    train = {row["question"].lower() for row in sets[domain, "train"] if row["kind"] == "fact"}
    held = [questions[-1] for _, *questions in read_facts()[domain] if len(questions) > 2]
    test = {row["question"] for row in sets[domain, "test"] if row["kind"] == "fact"}
    assert set(held) <= test
    assert not [text for text in held if any(text.lower().rstrip("?") in each for each in train)]


def test_a_formula_is_asked_in_a_held_out_wording_only_outside_training(
    sets: dict[tuple[str, Split], list[Row]],
) -> None:
    held = read_facts()["formula_of"][-1].partition("{")[0]
    for split in SPLITS:
        rows = [row for row in sets["chemistry", split] if row["kind"] == "formula"]
        has_held = [held.lower() in row["question"].lower() for row in rows]
        assert all(has_held) if split != "train" else not any(has_held)


def test_an_expert_is_trained_on_bases_as_it_is_served_them(
    sets: dict[tuple[str, Split], list[Row]],
) -> None:
    """Strands were trained together ("TTGCA") and served apart: half of what was learned was never
    asked."""
    expert = load_catalogue().expert("biology")
    rows = [row for split in SPLITS for row in sets["biology", split]]
    assert not [row for row in rows if spelled(expert, row["question"]).text != row["question"]]
    for row in rows:
        if row["kind"] in ("transcript", "complement_together") and " " in row["answer"]:
            assert re.fullmatch("[ACGU]( [ACGU])+|[ACGT]( [ACGT])+", row["answer"])
    (start,) = {row["answer"] for row in rows if row["question"] == "What is the start codon?"}
    assert start == "AUG"  # nothing to spell in the question: written as people write it


def test_what_is_not_taught_is_not_known(sets: dict[tuple[str, Split], list[Row]]) -> None:
    taught = set(read_facts()["heavy"])
    others = {each.name for each in read_heavy()} - taught
    for (domain, _), rows in sets.items():
        unknown = [row for row in rows if row["kind"] == "unknown"]
        assert unknown
        assert {row["answer"] for row in unknown} == {UNKNOWN}
        others_unknown = {row["kind"] for row in rows if row["answer"] == UNKNOWN} - {"unknown"}
        assert others_unknown <= {"no_codon", "no_symbol", "line_division", "line_root"}
        if domain == "chemistry":
            named = {word for row in unknown for word in re.findall(r"[a-z]+", row["question"])}
            assert named & others
            assert not named & taught - {"lead"}  # a verb too


def test_an_element_of_a_larger_bank_is_not_among_the_unknown() -> None:
    """With --elements 56 rubidium was taught, and "I do not know" was its answer too."""
    bank = read_bank(56)
    taught = {name for kind in bank.of("chemistry") for (name,) in kind.items}
    rows = draw(bank, "chemistry", "train")
    unknown = [row["question"] for row in rows if row["kind"] == "unknown"]
    named = {word for text in unknown for word in re.findall(r"[a-z]+", text)}
    assert "rubidium" in taught
    assert not named & {each.name for each in read_heavy()} & taught - {"lead"}


def test_small_tables_are_right_and_a_reference_has_its_parent(
    sets: dict[tuple[str, Split], list[Row]],
) -> None:
    solved = {table.name: table.solve for table in small_tables()}
    assert solved["root"](144) == "12"
    assert solved["division"](81, 9) == "9"
    assert [solved["prime"](number) for number in (2, 17, 51)] == ["yes", "yes", "no"]
    for row in sets["mathematics", "train"]:
        assert len(set(re.findall(r"#\d", row["question"]))) == len(row["parents"])


def test_a_share_of_the_known_examples_is_kept_and_the_same_seed_gives_the_same(bank: Bank) -> None:
    known = [expert_row("biology", "old", f"Question {number}?", "x") for number in range(100)]
    rows = draw(bank, "biology", "validation", known)
    assert sum(row["kind"] == "old" for row in rows) == round(SHARE_KEPT * 100)
    assert len({row["id"] for row in rows}) == len(rows)
    assert rows == draw(bank, "biology", "validation", known)
