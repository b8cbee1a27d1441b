"""Drawn wordings are well formed, and none is one that validation or test asks with."""

from __future__ import annotations

import random
import re

import pytest

from compllm.build_scripts.datasets.bank import DOMAINS, Bank, read_bank
from compllm.build_scripts.datasets.frames import (
    draw_thing,
    draw_wording,
    frame_bank,
    read_frames,
)
from compllm.build_scripts.datasets.generators import invented_composites
from compllm.build_scripts.datasets.invented import read_invented
from compllm.build_scripts.datasets.kinds import pick_split
from compllm.build_scripts.datasets.wordings import Joiner, read_joiners, read_wordings
from compllm.plan import parse_plan

GROUPS = sorted(read_frames()[0])


@pytest.fixture(scope="module")
def bank() -> Bank:
    return read_bank(18)


def held_out() -> set[str]:
    real = {
        wording.text.casefold()
        for domain in DOMAINS
        for wordings in read_wordings(domain).values()
        for wording in wordings
        if wording.split != "train"
    }
    made = {
        text.replace("{e}", "{x}").casefold()
        for split in ("validation", "test")
        for texts in read_invented(split).values()  # type: ignore[arg-type]
        for text in texts
    }
    return real | made


def pattern(frame: str) -> re.Pattern[str]:
    """Everything that a frame can become."""
    words = read_frames()[1]
    parts = re.split(r"(\{[A-Za-z_]{2,}\})", frame.replace(" a {", " an? {"))
    text = "".join(
        "(?:" + "|".join(map(re.escape, words[part[1:-1]])) + ")"
        if part[1:-1] in words and part.startswith("{")
        else re.escape(part).replace(r"an\?", "an?")
        for part in parts
    )
    return re.compile(text, re.IGNORECASE)


def test_no_frame_can_become_a_held_out_wording() -> None:
    frames = [pattern(frame) for group in read_frames()[0].values() for frame in group]
    assert len(frames) > 150
    known = held_out()
    assert [text for text in known for frame in frames if frame.fullmatch(text)] == []


def test_a_frame_becomes_what_its_pattern_says() -> None:
    rng = random.Random(0)
    frames = [pattern(frame) for group in read_frames()[0].values() for frame in group]
    for group in GROUPS * 20:
        drawn = draw_wording(rng, group)
        assert any(frame.fullmatch(drawn) for frame in frames), drawn


@pytest.mark.parametrize("group", GROUPS)
def test_wordings_name_each_operand_and_fit_the_grammar(group: str) -> None:
    rng = random.Random(1)
    slots = {"one": "x", "two": "xy", "three": "xyz"}.get(group.split("_")[0], "x")
    for _ in range(200):
        text = draw_wording(rng, group)
        assert set(re.findall(r"\{(\w+)\}", text)) == set(slots)
        filled = text.format(x="A B", y="7", z="9")
        asked = filled if text.endswith("?") else f"What is {filled}?"
        assert re.fullmatch(r"[A-Z][^\n?|<>#]{1,150}\?", asked), asked


def test_things_carry_names_of_train_alone() -> None:
    rng = random.Random(2)
    for _ in range(300):
        thing = draw_thing(rng)
        assert re.fullmatch(r"[A-Za-z0-9 ]+", thing)
        if len(thing) > 5 and " " not in thing and thing.isalpha():
            assert pick_split(thing.capitalize()) == "train"


def test_a_frame_bank_has_all_that_composites_look_for(bank: Bank) -> None:
    drawn = frame_bank(bank, random.Random(3), 0)
    assert {kind.domain for kind in drawn.kinds} == set(DOMAINS)
    for wanted in ("element", "amino", "codon", "number"):
        assert drawn.givers(wanted)
    assert all(kind.accepts(("anything",)) for kind in drawn.kinds)


def test_made_up_composites_are_plans_of_many_wordings(bank: Bank) -> None:
    made = invented_composites(bank, random.Random(4), 24)
    assert (len(made["p"]), len(made["all"])) == (24, 72)
    assert all("wordings" not in row for rows in made.values() for row in rows)
    for row in made["all"]:
        assert parse_plan(row["plan"]).sub_queries
        assert " <" in row["plan"]


def test_joiners_put_together_are_none_of_the_held_out_ones() -> None:
    train = read_joiners("train")
    made = {*train.made_questions, *train.made_nouns, *train.made_ask}
    assert len(made) > 800
    for split in ("validation", "test"):
        joiners = read_joiners(split)  # type: ignore[arg-type]
        assert joiners.made_questions == joiners.made_nouns == joiners.made_ask == ()
        assert made.isdisjoint({*joiners.questions, *joiners.nouns, *joiners.ask})
        # Not in parts either: what is held out opens or joins in a way of its own.
        parts = {part for joiner in joiners.questions for part in (joiner.prefix, joiner.between)}
        own = {part for part in parts if re.search("[A-Za-z]", part)}
        for joiner in made:
            if isinstance(joiner, Joiner):
                assert own.isdisjoint({joiner.prefix, joiner.between, joiner.last})
