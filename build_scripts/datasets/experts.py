"""Training sets of the domain experts: one question, perhaps with its parents' responses.

Dependent questions name their operands as `#k` and bring the parents' questions and responses, as
a node of a running plan does. The parents come from the bank, or are made up where no item of the
bank has the wanted answer.
"""

from __future__ import annotations

import random
from typing import Any

from compllm.build_scripts.datasets.bank import Bank
from compllm.build_scripts.datasets.invented import invent_name, read_invented
from compllm.build_scripts.datasets.kinds import Kind, Operands, Split, Wording

_MAX_LINE = 5  # plans of more lines are rare


class ExpertSets:
    """Draws the examples of one split."""

    def __init__(self, bank: Bank, split: Split, rng: random.Random) -> None:
        self._bank = bank
        self._split: Split = split
        self._rng = rng

    def domain(self, domain: str, per_kind: int | None) -> list[dict[str, Any]]:
        """All examples of a domain, shuffled. per_kind: None takes each kind's own exposures."""
        rows = [row for kind in self._bank.of(domain) for row in self._kind(kind, per_kind)]
        self._rng.shuffle(rows)
        return [
            {"id": f"{domain}-{self._split}-{index:05d}", **row} for index, row in enumerate(rows)
        ]

    def _kind(self, kind: Kind, per_kind: int | None) -> list[dict[str, Any]]:
        items = [item for item in kind.items if kind.belongs(item, self._split)]
        count = round(kind.exposures * len(items)) if per_kind is None else per_kind
        if not items:  # few elements, and a split without any of the kind
            return []
        rows: list[dict[str, Any]] = []
        seen: set[str] = set()
        order: list[Operands] = []
        tries = 0
        while len(rows) < count:
            if not order:  # every item once before any twice
                order = self._rng.sample(items, len(items))
            row = self._example(kind, order.pop())
            tries += 1
            text = f"{row['question']} {row['parents']}"
            # A held-out set repeats nothing, as far as its items and wordings allow.
            if per_kind is not None and text in seen and tries < 20 * count:
                continue
            if per_kind is not None and tries >= 20 * count:
                break
            seen.add(text)
            rows.append(row)
        return rows

    def _example(self, kind: Kind, operands: Operands) -> dict[str, Any]:
        nesting = kind.in_split(self._split, can_nest=True)
        is_dependent = bool(nesting) and self._rng.random() < kind.dependent
        wording = self._rng.choice(nesting if is_dependent else kind.in_split(self._split))
        asked, parents = self._depend(kind, operands, wording) if is_dependent else (operands, [])
        return {
            "domain": kind.domain,
            "kind": kind.name,
            "wording": wording.id,
            "question": wording.question(asked),
            "parents": parents,
            "answer": kind.answer(operands),
        }

    def _depend(
        self, kind: Kind, operands: Operands, wording: Wording
    ) -> tuple[Operands, list[dict[str, str]]]:
        """Some operands as lines of a plan, which rise as the wording names them."""
        places = [place for place in wording.order if kind.takes[place] != "divisor"]
        if len(places) == 2 and self._rng.random() < 0.3:
            places = [self._rng.choice(places)]
        top = self._rng.randint(len(places), max(len(places), _MAX_LINE - 1))
        lines = sorted(self._rng.sample(range(1, top + 1), len(places)))
        asked = list(operands)
        parents = []
        for place, line in zip(places, lines, strict=True):
            question = self._parent(kind.takes[place], operands[place], line)
            if question is None:
                return operands, []
            asked[place] = f"#{line}"
            parents.append({"question": question, "response": operands[place]})
        return tuple(asked), parents

    def _parent(self, wanted: str, value: str, line: int) -> str | None:
        """A question whose answer is this value; None where there is none to be had."""
        rng = self._rng
        sources = self._bank.sources(wanted, value)
        if wanted == "number" and (not sources or rng.random() < 0.15):
            phrase = rng.choice(read_invented(self._split)["counts"])
            return f"What is {phrase.format(e=invent_name(rng, self._split))}?"
        if not sources:
            return None
        # By kind first: mathematics has far more items for a number than the sciences have.
        name = rng.choice(sorted({kind.name for kind, _ in sources}))
        kind, operands = rng.choice([each for each in sources if each[0].name == name])
        nesting = kind.in_split(self._split, can_nest=True)
        asked: list[str] = list(operands)
        if line > 1 and nesting and rng.random() < (0.7 if kind.domain == "mathematics" else 0.2):
            above = sorted(rng.sample(range(1, line), min(line - 1, len(asked))))
            for place, other in enumerate(above):
                if kind.takes[place] != "divisor":
                    asked[place] = f"#{other}"
            return rng.choice(nesting).question(asked)
        return rng.choice(kind.in_split(self._split)).question(asked)
