"""Questions inside questions: the text of a composite, and its plan, from one tree.

A node's wording is used twice: filled with its operands' noun phrases it is the composite's text,
filled with `#k` it is a line of the plan. So the plan copies the query's own words, and its lines
stand in the order in which the query names what they ask for: "How much greater than Y is X?" asks
for Y first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compllm.build_scripts.datasets.kinds import Kind, Split, Wording


@dataclass(frozen=True, eq=False)
class Expression:
    """A kind asked of operands: plain values, or what other expressions give. Equal only to itself:
    a shared one is a single node of the plan."""

    kind: Kind
    wording: Wording
    operands: tuple[str | Expression, ...]

    @property
    def children(self) -> list[Expression]:
        return [each for each in self.operands if isinstance(each, Expression)]

    def text(self, names: dict[Expression, str]) -> str:
        """The wording with its operands' texts; `names` says how shared ones are called."""
        return self.wording.fill(
            [
                each if isinstance(each, str) else names.get(each) or each.text(names)
                for each in self.operands
            ]
        )

    def question(self, names: dict[Expression, str]) -> str:
        text = self.text(names)
        return f"What is {text}?" if self.wording.is_noun else text

    def shape(self, *, is_sorted: bool = False) -> str:
        """The composition: kinds without wordings and entities. is_sorted: whatever the order of
        the operands."""
        shapes = [child.shape(is_sorted=is_sorted) for child in self.children]
        inner = ",".join(sorted(shapes) if is_sorted else shapes)
        return f"{self.kind.name}({inner})" if inner else self.kind.name


@dataclass(frozen=True, slots=True)
class Node:
    """One line of the plan, with its gold answer."""

    text: str
    parents: tuple[int, ...]  # 0-based
    kind: Kind
    wording: Wording
    operands: tuple[str, ...]  # values
    answer: str


@dataclass
class Flattener:
    """Expressions to nodes, operands first. Stays unfinished when a node has no answer."""

    split: Split
    nodes: list[Node] = field(default_factory=list)
    _index: dict[Expression, int] = field(default_factory=dict)

    def add(self, expression: Expression) -> int | None:
        """The index of its node; None when a value is no item of the split."""
        if expression in self._index:
            return self._index[expression]
        texts = [each if isinstance(each, str) else "" for each in expression.operands]
        values, parents = list(texts), []
        for place in expression.wording.order:
            each = expression.operands[place]
            if isinstance(each, str):
                continue
            index = self.add(each)
            if index is None:
                return None
            texts[place] = f"#{index + 1}"
            values[place] = self.nodes[index].answer
            parents.append(index)
        kind, operands = expression.kind, tuple(values)
        if not kind.belongs(operands, self.split):
            return None
        node = Node(
            text=expression.wording.question(texts),
            parents=tuple(sorted(set(parents))),
            kind=kind,
            wording=expression.wording,
            operands=operands,
            answer=kind.answer(operands),
        )
        self.nodes.append(node)
        self._index[expression] = len(self.nodes) - 1
        return len(self.nodes) - 1


def leaves(parents: Sequence[Sequence[int]]) -> list[int]:
    """The nodes that no other node builds on, in the order of the plan."""
    used = {index for above in parents for index in above}
    return [index for index in range(len(parents)) if index not in used]
