"""The parts of everyday questions: things, single facts, sums, and how they are listed.

A leaf is one question that needs no other answer. It has a noun phrase ("the period of iron")
where a command or a list can name it. All draws come from one random stream.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from compllm.build_scripts.datasets.bank import DOMAINS, Bank
from compllm.build_scripts.datasets.forms import forms, read_facts
from compllm.build_scripts.datasets.invented import invent_name
from compllm.build_scripts.datasets.kinds import Kind, Split, choose
from compllm.build_scripts.datasets.spoken import possessive, respelled

_HELD = 6  # every sixth wording of a list is for validation and test
_ATTRIBUTE = re.compile(r"the ([a-z][a-z -]*) of \{x\}")
_BASES = ("codon", "dna", "triplet")
_SHARE_NUMBER_FACTS = 0.12  # of the questions whose answer is a number
_NAMED_BY = {
    "element": "atomic_number", "codon": "codon_amino", "amino": "one_letter",
    "symbol": "from_symbol",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its plan; parents are 0-based."""

    text: str
    steps: tuple[str, ...]
    parents: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One fact that is asked for: as a question, and as a noun phrase where there is one."""

    question: str
    noun: str | None
    gives: str  # the type of the answer


class Leaves:
    """Draws the parts of one split."""

    def __init__(self, bank: Bank, split: Split, rng: random.Random) -> None:
        self._bank = bank
        self.split: Split = split
        self.rng = rng
        self._sciences = [*bank.of("chemistry"), *bank.of("biology")]

    def pick(self, wordings: Sequence[Any]) -> Any:
        """A wording of this split: every sixth is held out where there are enough."""
        if len(wordings) < _HELD:
            return self.rng.choice(wordings)
        held = wordings[_HELD - 1 :: _HELD]
        if self.split != "train":
            return self.rng.choice(held)
        return self.rng.choice([each for each in wordings if each not in held])

    def form(self, name: str) -> Any:
        """A wording of this split from the table of forms."""
        return self.pick(forms(name))

    # Things.

    def thing(self, kind_of: str) -> str:
        """A name of the type, as people write it."""
        rng = self.rng
        if kind_of == "position":
            return str(rng.randint(1, 118))
        if kind_of == "element" and rng.random() < 0.3:
            return str(rng.choice(read_facts()["heavy"]))
        name = self._item(_NAMED_BY[kind_of])
        if kind_of == "codon" and rng.random() >= 0.25:
            return respelled(rng, name)
        return name

    def things(self, kind_of: str, count: int) -> list[str]:
        """Different names of the type; some of elements and amino acids are made up."""
        found: dict[str, None] = {}
        while len(found) < count:
            made = kind_of in ("element", "amino") and self.rng.random() < 0.1
            found[self.invented() if made else self.thing(kind_of)] = None
        return list(found)

    def listed(self, things: Sequence[str]) -> str:
        last = self.rng.choice((" and ", " and ", ", and ", ", "))
        return ", ".join(things[:-1]) + last + things[-1]

    def invented(self) -> str:
        return invent_name(self.rng, self.split)

    def pronoun(self, kind_of: str) -> str:
        return str(self.rng.choice(forms(kind_of, "pronouns")))

    def attributes(self, kind_of: str) -> list[str]:
        """The properties of a type that have a name: "atomic number", "number of codons"."""
        nouns = [
            wording.text
            for kind in self.kinds_about(kind_of)
            for wording in kind.in_split("train", is_noun=True)
        ]
        found = [match[1] for noun in nouns if (match := _ATTRIBUTE.fullmatch(noun))]
        return list(dict.fromkeys(found))

    def kinds_about(self, kind_of: str) -> list[Kind]:
        """The kinds of the sciences that take one thing of this type and nothing else."""
        return [kind for kind in self._sciences if kind.takes == (kind_of,)]

    def strand(self) -> str:
        """A DNA strand, as people write it."""
        return respelled(self.rng, self._item("complement"))

    def compound(self) -> str:
        return str(self.rng.choice(read_facts()["compounds"])[0])

    def calculation(self) -> str:
        """A short calculation as a noun phrase: "6 times 7"."""
        while not (noun := self.sum().noun):
            pass
        return noun

    def _item(self, name: str) -> str:
        kind = next(each for each in self._bank.kinds if each.name == name)
        return self.rng.choice(kind.items)[0]

    # Questions.

    def leaf(self, gives: str | None = None, *, is_noun: bool = False) -> Leaf:
        """A question of the sciences. gives: the type of its answer, None for any."""
        kinds = [kind for kind in self._sciences if gives in (None, kind.gives)]
        if gives is None and not is_noun and self.rng.random() < 0.25:
            return self._fact()
        if gives == "number" and self.rng.random() < _SHARE_NUMBER_FACTS:
            return self._number_fact(is_noun=is_noun)
        kind = choose(self.rng, kinds)
        wordings = kind.in_split(self.split, is_noun=True if is_noun else None)
        if not wordings:
            return self.leaf(gives, is_noun=is_noun)
        wording = self.rng.choice(wordings)
        operands = self._operands(kind)
        if not wording.is_noun:
            return Leaf(wording.question(operands), None, kind.gives)
        noun = possessive(self.rng, wording.fill(operands), operands, 0.15)
        return Leaf(f"What is {noun}?", noun, kind.gives)

    def leaf_or_sum(self, *, is_noun: bool = False) -> Leaf:
        return self.leaf(is_noun=is_noun) if self.rng.random() < 0.75 else self.sum()

    def sum(self) -> Leaf:
        """A question of mathematics about plain numbers."""
        rng = self.rng
        if rng.random() < 0.5:
            kind = choose(rng, self._bank.of("mathematics"))
            wording = rng.choice(kind.in_split(self.split))
            operands = rng.choice(kind.items_of(self.split))
            noun = wording.fill(operands) if wording.is_noun else None
            return Leaf(wording.question(operands), noun, kind.gives)
        x, y = rng.randint(1, 40), rng.randint(2, 12)
        noun = str(rng.choice(forms("sums")).format(x=x, y=y))
        return Leaf(f"What is {noun}?", noun, "number")

    def _operands(self, kind: Kind) -> tuple[str, ...]:
        rng = self.rng
        operands = rng.choice(kind.items_of(self.split))
        if kind.takes == ("element",) and rng.random() < 0.25:
            return (str(rng.choice(read_facts()["heavy"])),)
        if kind.takes[0] in _BASES and rng.random() < 0.75:
            return (respelled(rng, operands[0]),)
        return operands

    def _fact(self) -> Leaf:
        question = self._compound() if self.rng.random() < 0.3 else self._single_fact()
        noun = None
        if question.startswith("What is the ") and question.endswith("?"):
            noun = question.removeprefix("What is ").removesuffix("?")
        return Leaf(question, noun, "fact")

    def _number_fact(self, *, is_noun: bool) -> Leaf:
        """A single fact whose answer is a number: legs, chambers, chromosomes."""
        start = "What is the number " if is_noun else "How many "
        question = self.rng.choice(
            [
                text
                for domain in DOMAINS
                for answer, *texts in read_facts()[domain]
                for text in texts
                if answer.isdecimal() and text.startswith(start) and text.endswith("?")
            ]
        )
        noun = question.removeprefix("What is ").removesuffix("?") if is_noun else None
        return Leaf(question, noun, "number")

    def _compound(self) -> str:
        facts = read_facts()
        name, formula = self.rng.choice(facts["compounds"])
        form = self.rng.choice(facts["formula_of"] + facts["of_formula"])
        return str(form.format(x=name, y=formula))

    def _single_fact(self) -> str:
        domain = self.rng.choice(DOMAINS)
        return str(self.rng.choice(self.rng.choice(read_facts()[domain])[1:]))


def one(text: str, line: str) -> Asked:
    """A question whose plan is one line."""
    return Asked(text, (line,), ((),))


def apart(text: str, lines: Sequence[str]) -> Asked:
    """A question whose lines need no other's answer."""
    return Asked(text, tuple(lines), ((),) * len(lines))


def upper(text: str) -> str:
    return text[0].upper() + text[1:]


def lower(text: str) -> str:
    return text[0].lower() + text[1:]


def plural(attribute: str) -> str:
    """ "atomic numbers" of "atomic number"; "numbers of codons" of "number of codons"."""
    head, of, rest = attribute.partition(" of ")
    head = head.removesuffix("s") + "ses" if head.endswith("ss") else head + "s"
    return head + of + rest
