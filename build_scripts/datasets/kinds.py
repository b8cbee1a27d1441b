"""The vocabulary of the data sets: a kind of question, its wordings, its items.

An item is a kind with its operands, such as ("atomic_number", ("iron",)). Items and answers are
strings, as the models read and write them.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import Literal, get_args

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Operands = tuple[str, ...]
SLOTS = ("x", "y", "z")


@dataclass(frozen=True, slots=True)
class Wording:
    """One way to ask. `text` holds {x}, {y}, {z}; a noun phrase is asked as "What is ...?"."""

    id: str  # "atomic_number/train-2", "atomic_number/noun-test-0"
    text: str
    split: Split
    is_noun: bool
    can_nest: bool  # whether a noun phrase may stand where an operand does

    def fill(self, operands: Sequence[str]) -> str:
        # One pass: an operand's text is never read as a template.
        return self.text.format(**dict(zip(SLOTS, operands, strict=False)))

    def question(self, operands: Sequence[str]) -> str:
        text = self.fill(operands)
        return f"What is {text}?" if self.is_noun else text

    @property
    def order(self) -> list[int]:
        """The operands' places, in the order in which the text names them."""
        places = [SLOTS.index(slot) for _, slot, *_ in Formatter().parse(self.text) if slot]
        return list(dict.fromkeys(places))

    @property
    def is_infix(self) -> bool:
        """Whether it begins with an operand, which makes it ambiguous inside another."""
        return self.text.startswith("{")


@dataclass(frozen=True)
class Kind:
    """A kind of question with every item that it can be asked of."""

    name: str
    domain: str
    takes: tuple[str, ...]  # types of the operands
    gives: str  # type of the answer
    items: tuple[Operands, ...]
    solve: Callable[..., str]  # operands -> answer
    wordings: tuple[Wording, ...]
    is_split: bool = False  # generalising: operands of validation and test are not in train
    exposures: float = 12  # examples of each train item, plain and dependent together
    dependent: float = 0.3  # share of the examples whose operands are parents' responses
    weight: float = 1.0  # how often composites use it
    # For kinds with more items than are worth listing; `items` is then a sample of these.
    accepts_more: Callable[[Operands], bool] | None = None

    @cached_property
    def _known(self) -> frozenset[Operands]:
        return frozenset(self.items)

    def accepts(self, operands: Operands) -> bool:
        if self.accepts_more is not None:
            return self.accepts_more(operands)
        return operands in self._known

    def answer(self, operands: Operands) -> str:
        return self.solve(*operands)

    def split_of(self, operands: Operands) -> Split | None:
        """The only split that may ask this; None where every split may. 3 + 5 goes with 5 + 3."""
        return pick_split(f"{self.name} {sorted(operands)}") if self.is_split else None

    def belongs(self, operands: Operands, split: Split) -> bool:
        return self.accepts(operands) and self.split_of(operands) in (None, split)

    def items_of(self, split: Split) -> tuple[Operands, ...]:
        """The items that this split may ask; all where it has none of its own."""
        return self._items_of[split] or self.items

    @cached_property
    def _items_of(self) -> dict[Split, tuple[Operands, ...]]:
        return {
            split: tuple(item for item in self.items if self.belongs(item, split))
            for split in SPLITS
        }

    def in_split(
        self, split: Split, *, is_noun: bool | None = None, can_nest: bool | None = None
    ) -> tuple[Wording, ...]:
        return self._wordings_of[split, is_noun, can_nest]

    @cached_property
    def _wordings_of(
        self,
    ) -> dict[tuple[Split, bool | None, bool | None], tuple[Wording, ...]]:
        return {
            (split, is_noun, can_nest): tuple(
                wording
                for wording in self.wordings
                if wording.split == split
                and is_noun in (None, wording.is_noun)
                and can_nest in (None, wording.can_nest)
            )
            for split in SPLITS
            for is_noun in (None, True, False)
            for can_nest in (None, True, False)
        }


def pick_split(key: str, validation: float = 0.07, test: float = 0.15) -> Split:
    """A split by hash: the same for the same key on every machine and for every seed."""
    share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) / 2**48
    if share < test:
        return "test"
    return "validation" if share < test + validation else "train"


def choose(rng: random.Random, kinds: Sequence[Kind]) -> Kind:
    return rng.choices(kinds, [kind.weight for kind in kinds])[0]
