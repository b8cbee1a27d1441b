"""The generator's everyday questions: every plan is valid, and every line of it stands alone."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import pairwise

import pytest

from compllm.build_scripts.datasets.bank import Bank, read_bank
from compllm.build_scripts.datasets.chains import Chains
from compllm.build_scripts.datasets.everyday import MAX_STEPS, Everyday, more_plans
from compllm.build_scripts.datasets.forms import forms, tables_of
from compllm.build_scripts.datasets.generators import plan_text
from compllm.build_scripts.datasets.kinds import SPLITS, Split
from compllm.build_scripts.datasets.leaves import Asked, Leaves
from compllm.build_scripts.datasets.several import Several
from compllm.plan import parse_plan

PEOPLE = ("Who built the first railway?", "Which court is the highest in India?")
POINTERS = re.compile(
    r"\b(its|it|(?:that|this) (?:number|element|amino acid|codon)|the (?:result|answer))\b"
)
FORMS_WITH_PRONOUNS = ("its", "its_after", "sequence", "command")


@pytest.fixture(scope="module")
def bank() -> Bank:
    return read_bank(36)


def draw(bank: Bank, split: Split, count: int, seed: int = 0) -> list[Asked]:
    return Everyday(bank, split, random.Random(seed), PEOPLE).many(count)


def chains(bank: Bank, split: Split = "train", seed: int = 0) -> Chains:
    return Chains(Leaves(bank, split, random.Random(seed)))


def several(bank: Bank, split: Split = "train", seed: int = 0) -> Several:
    return Several(Leaves(bank, split, random.Random(seed)))


def many(form: Callable[[], Asked], count: int = 200) -> list[Asked]:
    return [form() for _ in range(count)]


@pytest.mark.parametrize("split", SPLITS)
def test_every_plan_is_valid_and_has_at_most_five_lines(bank: Bank, split: Split) -> None:
    for asked in draw(bank, split, 300):
        plan = parse_plan(plan_text(asked.steps, asked.parents))
        assert [each.text for each in plan.sub_queries] == list(asked.steps)
        assert 1 <= len(asked.steps) <= MAX_STEPS
        for step, above in zip(asked.steps, asked.parents, strict=True):
            assert {int(found) - 1 for found in re.findall(r"#(\d+)", step)} <= set(above)


@pytest.mark.parametrize("split", SPLITS)
def test_no_question_comes_twice_and_no_line_starts_with_return(bank: Bank, split: Split) -> None:
    drawn = draw(bank, split, 300)
    assert len({asked.text for asked in drawn}) == 300
    assert not [s for asked in drawn for s in asked.steps if s.lower().startswith("return")]


@pytest.mark.parametrize("name", FORMS_WITH_PRONOUNS)
def test_a_line_has_a_name_or_a_reference_where_the_question_has_a_pronoun(
    bank: Bank, name: str
) -> None:
    """ "Is that number even?" was a line whose number no reader could know."""
    known = {
        wording.question(("x", "y", "z"))
        for kind in bank.kinds
        for wording in kind.wordings
        if POINTERS.search(wording.question(("x", "y", "z")).lower())
    }
    shapes = [re.escape(each).replace("x", ".+").replace("y", ".+") for each in known]
    drawn = many(getattr(chains(bank), name))
    lines = [line for asked in drawn for line in asked.steps if POINTERS.search(line.lower())]
    assert not [line for line in lines if not any(re.fullmatch(each, line) for each in shapes)]


def test_the_lines_of_the_tables_have_no_pronoun() -> None:
    pairs = [*forms("follow_commands"), *forms("follow_questions"), *forms("paired")]
    lines = [line.replace("{it}", "#1") for _, line, *_ in pairs]
    lines += [line for _, line, _ in (*forms("of_several"), *forms("compared"))]
    assert not [line for line in lines if POINTERS.search(line.lower())]
    assert set(tables_of("pronouns")["number"]) >= {"it", "that number", "the result"}


def test_the_verb_of_a_command_stands_in_its_line(bank: Bank) -> None:
    """ "Multiply A by B" became "What is #1 by #2?"."""
    for asked in many(chains(bank).command):
        shape = re.sub(r"#\d+|\b\d+\b", "{}", asked.steps[-1])
        start = shape.partition("{}")[0].strip().lower()
        assert start.split()[0] not in ("what", "which")
        assert start in asked.text.lower()


def test_every_step_of_a_sequence_keeps_the_verb_of_its_wording(bank: Bank) -> None:
    verbs = ("double", "halve", "square", "add", "subtract", "multiply", "divide", "triple")
    drawn = many(chains(bank).sequence)
    lines = [(asked, line) for asked in drawn for line in asked.steps if "#" in line]
    used = [
        (asked, verb) for asked, line in lines for verb in verbs if line.lower().find(verb) == 0
    ]
    assert len(used) > 100
    assert all(verb in asked.text.lower() or "sum" in asked.text for asked, verb in used)


def test_a_list_of_five_is_five_lines(bank: Bank) -> None:
    counts = set()
    for asked in (*many(several(bank).listed), *many(several(bank).of_several)):
        counts.add(len(asked.steps))
        assert len(set(asked.steps)) == len(asked.steps)
        assert asked.text.count(",") >= len(asked.steps) - 2
        assert not any(asked.parents)
    assert counts == {2, 3, 4, 5}


def test_codons_keep_their_spelling_in_the_line(bank: Bank) -> None:
    written = re.compile(r"\b(?:[ACGU]{3}|[acgu]{3}|[ACGU]-[ACGU]-[ACGU]|[ACGU] [ACGU] [ACGU])\b")
    spellings = set()
    for asked in many(several(bank).of_several, 600):
        codons = [found[0] for step in asked.steps if (found := written.search(step))]
        assert all(codon in asked.text for codon in codons)
        spellings |= {re.sub("[ACGU]", "X", re.sub("[acgu]", "x", each)) for each in codons}
    assert spellings == {"XXX", "xxx", "X-X-X", "X X X"}


@pytest.mark.parametrize("name", ["follow_commands", "intros", "lists", "of_several", "compared"])
def test_a_held_out_wording_is_in_no_training_question(bank: Bank, name: str) -> None:
    drawn = {
        split: {str(Leaves(bank, split, random.Random(n)).form(name)) for n in range(400)}
        for split in SPLITS
    }
    assert drawn["validation"] == drawn["test"]
    assert not drawn["train"] & drawn["test"]
    assert drawn["train"] | drawn["test"] == {str(each) for each in forms(name)}


def test_a_pair_keeps_both_plans_and_their_order(bank: Bank) -> None:
    drawn = many(Everyday(bank, "train", random.Random(0)).pair, 100)
    for asked in drawn:
        references = [[int(found) for found in re.findall(r"#(\d+)", step)] for step in asked.steps]
        assert all(max(each, default=0) <= place for place, each in enumerate(references))
        assert all(above == tuple(sorted(above)) for above in asked.parents)
    assert any(any(above and min(above) >= 2 for above in asked.parents) for asked in drawn)


def test_a_share_of_the_plans_known_before_is_kept_and_none_of_break(bank: Bank) -> None:
    known = [
        {"id": f"{source}-{n}", "source": source, "question": f"{source} {n}?", "plan": "1 | x\n"}
        for source in ("p", "break")
        for n in range(200)
    ]
    rows = more_plans(bank, "train", random.Random(0), 20, known, PEOPLE)
    sources = [row["source"] for row in rows]
    assert sources.count("everyday") == 20
    assert 15 <= sources.count("p") <= 50
    assert "break" not in sources


def test_the_same_seed_gives_the_same_questions(bank: Bank) -> None:
    one, again, other = draw(bank, "train", 50), draw(bank, "train", 50), draw(bank, "train", 50, 1)
    assert one == again != other
    assert any(a.text != b.text for a, b in pairwise(one))
