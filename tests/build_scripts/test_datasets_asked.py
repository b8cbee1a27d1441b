"""What plans ask of a thing: right answers, as many of "yes" as of "no", codons that are none."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest

from compllm.build_scripts.datasets.asked import asked_rows
from compllm.build_scripts.datasets.bank import Bank, read_bank
from compllm.build_scripts.datasets.forms import tables_of
from compllm.build_scripts.datasets.rows import Row
from compllm.prompts import UNKNOWN


@pytest.fixture(scope="module")
def bank() -> Bank:
    return read_bank(36)


def rows_of(bank: Bank, domain: str, seed: int = 0) -> list[Row]:
    return asked_rows(bank, domain, "train", random.Random(seed))


def test_a_reference_has_one_fact_and_a_name_has_none(bank: Bank) -> None:
    for row in (*rows_of(bank, "chemistry"), *rows_of(bank, "biology")):
        assert len(re.findall(r"#\d", row["question"])) == len(row["parents"])


def test_each_wording_of_the_table_belongs_to_a_kind(bank: Bank) -> None:
    kinds = {kind.name: kind for kind in bank.kinds}
    for name, texts in tables_of("asked").items():
        assert len(kinds[name].takes) == 1
        assert all(text.count("{x}") == 1 for text in texts)


def test_the_answers_are_those_of_the_thing(bank: Bank) -> None:
    known = {
        "How many protons has iron?": "26",
        "Which period contains sodium?": "3",
        "Which element has 8 protons?": "oxygen",
        "Is neon a metal?": "no",
        "Is iron a metal?": "yes",
    }
    found = {
        row["question"]: row["answer"]
        for seed in range(8)
        for row in rows_of(bank, "chemistry", seed)
    }
    shared = known.keys() & found.keys()
    assert len(shared) >= 3
    assert {each: found[each] for each in shared} == {each: known[each] for each in shared}


def test_yes_and_no_are_asked_of_heavy_elements_too(bank: Bank) -> None:
    rows = [row for row in rows_of(bank, "chemistry") if row["kind"] == "is_so"]
    named = {word for row in rows for word in re.findall(r"[a-z]+", row["question"])}
    assert {"gold", "uranium", "mercury", "neon"} <= named


def test_yes_is_the_answer_as_often_as_no_in_each_wording(bank: Bank) -> None:
    rows = [row for row in rows_of(bank, "chemistry") if row["kind"] == "is_so"]
    shape = re.compile(r"(Is|Does) \S+ ")
    counts = Counter((shape.sub(r"\1 x ", row["question"]), row["answer"]) for row in rows)
    for (text, _), count in counts.items():
        assert count == counts[text, "yes"] == counts[text, "no"]


def test_three_letters_with_a_base_of_dna_or_no_base_are_no_codon(bank: Bank) -> None:
    rows = [row for row in rows_of(bank, "biology") if row["kind"] == "no_codon"]
    assert rows
    for row in rows:
        bases = re.search(r"[AUGCTXZQ](?: ?[AUGCTXZQ]){2}(?=\W|$)", row["question"])
        assert bases
        assert set("TXZQ") & set(bases.group())
        assert row["answer"] == UNKNOWN


def test_an_element_in_its_other_spelling_has_the_same_answers(bank: Bank) -> None:
    rows = [row for row in rows_of(bank, "chemistry") if "aluminium" in row["question"]]
    answers = {row["kind"]: row["answer"] for row in rows}
    assert {"asked_symbol": "Al", "asked_atomic_number": "13"}.items() <= answers.items()
    assert any("sulphur" in row["question"] for row in rows_of(bank, "chemistry"))


def test_gs_and_cs_are_counted_in_strands_of_six(bank: Bank) -> None:
    rows = [row for row in rows_of(bank, "biology") if row["kind"] == "counted"]
    lengths = set()
    for row in rows:
        (strand,) = re.findall(
            r"\b[ACGT]{4,6}\b|\b[acgt]{4,6}\b|[ACGT](?:-[ACGT]){3,5}", row["question"]
        )
        bases = strand.replace("-", "").upper()
        lengths.add(len(bases))
        assert row["answer"] == str(sum(base in "GC" for base in bases))
    assert lengths == {4, 5, 6}
