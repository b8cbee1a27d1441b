"""The -P and -All sets: composite questions with gold plan, gold sub-answers and gold answer.

-P joins 2 to 4 independent sub-questions of different domains. Every -All question has at least one
dependent sub-question: chains, joins, diamonds, forks, and these beside independent ones. A
composition (which kinds, in which shape) belongs to one split, and so does every wording; what one
split has in some order of the operands, another does not have in a different one.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Any

from compllm.build_scripts.datasets.bank import DOMAINS, Bank
from compllm.build_scripts.datasets.expressions import Expression, Flattener, Node, leaves
from compllm.build_scripts.datasets.kinds import Kind, Split, Wording, choose, pick_split
from compllm.build_scripts.datasets.wordings import read_joiners
from compllm.errors import ConfigError

MAX_QUESTION_CHARS = 400
MAX_TEXT_CHARS = 150  # of a sub-query; the runtime's guide allows 160
_MAX_DRAWS = 1500  # of one shape with one last operation; most need some dozen
_ENTITIES = ("element", "amino", "codon")


_Drawn = tuple[str, list[Expression]]  # the question's text, and its parts
_Shape = Callable[[], _Drawn]


class _Misfit(Exception):
    """A draw that cannot become a composite: drawn again."""


@dataclass(frozen=True, slots=True)
class Composite:
    text: str
    nodes: tuple[Node, ...]
    composition: str
    unordered: str  # the composition, whatever the order of its operands

    def record(self, name: str, split: Split, index: int) -> dict[str, Any]:
        parents = [list(node.parents) for node in self.nodes]
        answers = [node.answer for node in self.nodes]
        return {
            "id": f"{name}-{split}-{index:04d}",
            "set": name,
            "question": self.text,
            "steps": [node.text for node in self.nodes],
            "parents": parents,
            "experts": [node.kind.domain for node in self.nodes],
            "kinds": [node.kind.name for node in self.nodes],
            "wordings": [node.wording.id for node in self.nodes],
            "composition": self.composition,
            "answers": answers,
            "answer": "; ".join(answers[leaf] for leaf in leaves(parents)),
        }


class Composer:
    """Draws composites of one split."""

    def __init__(
        self,
        bank: Bank,
        split: Split,
        rng: random.Random,
        *,
        is_hard: bool = False,
        taken: Container[str] = (),
        max_failed: int = 100,
    ) -> None:
        """is_hard: the shapes of four and five sub-queries more often. taken: unordered
        compositions that this split may not have. max_failed: shapes in a row that do not fit,
        after which no more are drawn."""
        self._bank = bank
        self._split: Split = split
        self._rng = rng
        self._taken, self._max_failed = taken, max_failed
        self._joiners = read_joiners(split)
        # Each with its weight and with how many numbers the last operation takes, if it has one.
        self._shapes: list[tuple[Callable[[Kind], _Drawn], float, int]] = [
            (lambda _: self._chain(), 3, 0),
            (lambda _: self._long_chain(), 1.5, 0),
            (self._count, 3, 1),
            (self._join, 5, 2),
            (self._wide_join, 1.5, 3),
            (self._deep_join, 1.2, 2),
            (self._double_chain, 1.2, 2),
            (self._topped_join, 1.2, 1),
            (lambda _: self._beside(), 2.5, 0),
            (self._beside_join, 1, 2),
            (lambda _: self._fork(), 1.5, 0),
            (self._diamond, 2, 2),
        ]
        if is_hard:
            hard = (self._wide_join, self._deep_join, self._double_chain, self._topped_join,
                    self._beside_join, self._diamond)  # fmt: skip
            self._shapes = [
                (shape, weight * (2 if shape in hard else 1), arity)
                for shape, weight, arity in self._shapes
            ]
        self._weights_of_parts = (3, 3, 4) if is_hard else (5, 4, 2)

    def parallel(self, count: int) -> list[Composite]:
        return self._many(count, lambda: self._parallel)

    def dependent(self, count: int) -> list[Composite]:
        return self._many(count, self._pick_shape)

    def mixed(self, count: int) -> list[Composite]:
        """-All questions of which only one part has to be taken apart."""
        return self._many(count, self._pick_mixed)

    def _pick_mixed(self) -> _Shape:
        if self._rng.random() < 0.6:
            return self._beside
        top = choose(self._rng, self._reckoning(2))
        return lambda: self._beside_join(top)

    def _pick_shape(self) -> _Shape:
        """A shape and its last operation: what is often a misfit is drawn again, not given up."""
        weights = [weight for _, weight, _ in self._shapes]
        shape, _, arity = self._rng.choices(self._shapes, weights)[0]
        tops = self._reckoning(max(arity, 1))
        if arity == 1:  # the second operand is then a plain number
            kinds = self._bank.of("mathematics")
            tops += [kind for kind in kinds if kind.takes[0] == "number" and len(kind.takes) == 2]
        top = choose(self._rng, tops)
        return lambda: shape(top)

    def _many(self, count: int, next_shape: Callable[[], _Shape]) -> list[Composite]:
        """Different questions, mostly of the shapes asked for: a misfit is drawn again.

        Raises ConfigError when there are fewer.
        """
        found: dict[str, Composite] = {}
        num_failed = 0
        while len(found) < count:
            composite = self._fit(next_shape(), found)
            if composite is not None:
                found[composite.text] = composite
                num_failed = 0
                continue
            num_failed += 1
            if num_failed == self._max_failed:
                raise ConfigError(
                    f"only {len(found)} different composite questions could be drawn for "
                    f"{self._split}, not {count}: ask for fewer"
                )
        return list(found.values())

    def _fit(self, shape: _Shape, found: Container[str]) -> Composite | None:
        """A new composite of this shape; None where none, or next to none, fits the split."""
        for _ in range(_MAX_DRAWS):
            try:
                composite = self._finish(*shape())
            except _Misfit:
                continue
            if composite.text not in found:
                return composite
        return None

    def _finish(self, text: str, parts: Sequence[Expression]) -> Composite:
        composition = " + ".join(sorted(part.shape() for part in parts))
        if pick_split(composition) != self._split:
            raise _Misfit
        unordered = " + ".join(sorted(part.shape(is_sorted=True) for part in parts))
        if unordered in self._taken:
            raise _Misfit
        flattener = Flattener(self._split)
        for part in parts:
            if flattener.add(part) is None:
                raise _Misfit
        nodes = flattener.nodes
        if len({(node.kind.name, node.operands) for node in nodes}) < len(nodes):
            raise _Misfit  # the same thing asked twice
        if len(text) > MAX_QUESTION_CHARS or any(len(n.text) > MAX_TEXT_CHARS for n in nodes):
            raise _Misfit
        return Composite(text, tuple(nodes), composition, unordered)

    # -P

    def _parallel(self) -> _Drawn:
        rng = self._rng
        count = rng.choices((2, 3, 4), self._weights_of_parts)[0]
        domains = rng.sample(DOMAINS, min(count, 3))
        if count == 4:
            domains.insert(rng.randrange(3), rng.choice(DOMAINS))
        are_nouns = rng.random() < 0.35
        parts = [self._leaf(self._kind(self._bank.of(d), are_nouns), are_nouns) for d in domains]
        return self._ask_all(parts, are_nouns), parts

    # -All

    def _chain(self) -> _Drawn:
        """f(g(x)) over entities."""
        inner = self._entity()
        return self._ask_one(self._over(inner, self._takers(inner)))

    def _long_chain(self) -> _Drawn:
        """f(g(h(x))): entities, or a count of an entity that is then reckoned with."""
        inner = self._entity()
        middle = self._over(inner, self._takers(inner), is_noun=True)
        return self._ask_one(self._over(middle, self._takers(middle)))

    def _count(self, top: Kind) -> _Drawn:
        """One count, reckoned with: even, doubled, seven more."""
        inner = self._leaf(self._kind(self._counting(), True), True)
        return self._ask_one(self._over(inner, [top]))

    def _join(self, top: Kind) -> _Drawn:
        return self._ask_one(self._reckon(top, self._counts(2)))

    def _wide_join(self, top: Kind) -> _Drawn:
        return self._ask_one(self._reckon(top, self._counts(3)))

    def _deep_join(self, top: Kind) -> _Drawn:
        pair = [self._counted_entity(), *self._counts(1)]
        self._rng.shuffle(pair)
        return self._ask_one(self._reckon(top, pair))

    def _double_chain(self, top: Kind) -> _Drawn:
        return self._ask_one(self._reckon(top, [self._counted_entity(), self._counted_entity()]))

    def _topped_join(self, top: Kind) -> _Drawn:
        """A join with one more operation on top of it."""
        kinds = [kind for kind in self._reckoning(2) if kind.gives == "number"]
        joined = self._reckon(choose(self._rng, kinds), self._counts(2), is_noun=True)
        return self._ask_one(self._over(joined, [top]))

    def _beside(self) -> _Drawn:
        """A chain, or one count reckoned with, beside independent questions."""
        if self._rng.random() < 0.5:
            entity = self._entity()
            dependent = self._over(entity, self._takers(entity))
        else:
            count = self._counts(1)[0]
            dependent = self._over(count, self._takers(count, ("mathematics",)))
        return self._with_others(dependent)

    def _beside_join(self, top: Kind) -> _Drawn:
        return self._with_others(self._reckon(top, self._counts(2)))

    def _with_others(self, dependent: Expression) -> _Drawn:
        parts = [dependent]
        for _ in range(self._rng.choices((1, 2), (3, 2))[0]):
            domain = self._rng.choice(DOMAINS)
            parts.append(self._leaf(choose(self._rng, self._bank.of(domain))))
        self._rng.shuffle(parts)
        return self._ask_all(parts, are_nouns=False), parts

    def _fork(self) -> _Drawn:
        """Two questions about one thing that has to be found first."""
        shared = self._entity()
        takers = self._takers(shared)
        parts = [self._over(shared, takers), self._over(shared, takers)]
        return self._introduce(shared, parts), parts

    def _diamond(self, top: Kind) -> _Drawn:
        """Two counts of one thing, reckoned with."""
        shared = self._entity()
        takers = self._takers(shared, gives="number")
        counts = [self._over(shared, takers, is_noun=True) for _ in range(2)]
        whole = self._reckon(top, counts)
        return self._introduce(shared, [whole]), [whole]

    # Parts

    def _kind(self, kinds: Sequence[Kind], is_noun: bool | None) -> Kind:
        usable = [kind for kind in kinds if kind.in_split(self._split, is_noun=is_noun)]
        if not usable:
            raise _Misfit
        return choose(self._rng, usable)

    def _leaf(self, kind: Kind, is_noun: bool | None = None) -> Expression:
        # Of this split: were others drawn and given up, tables would crowd out the kinds with few.
        operands = self._rng.choice(kind.items_of(self._split))
        wording = self._rng.choice(kind.in_split(self._split, is_noun=is_noun))
        return Expression(kind, wording, operands)

    def _entity(self) -> Expression:
        """A noun phrase that stands for an element, an amino acid, a codon or a strand."""
        wanted = self._rng.choices((*_ENTITIES, "dna"), (4, 4, 1.5, 1))[0]
        kind = self._kind(self._bank.givers(wanted), True)
        return self._leaf(kind, True)

    def _counted_entity(self) -> Expression:
        """A noun phrase: a count of something that has to be found first."""
        entity = self._entity()
        return self._over(entity, self._takers(entity, gives="number"), is_noun=True)

    def _counting(self) -> list[Kind]:
        return [kind for kind in self._bank.givers("number") if kind.domain != "mathematics"]

    def _counts(self, count: int) -> list[Expression]:
        """Numbers to find, of different domains where there are several."""
        kinds = self._counting()
        found: list[Expression] = []
        for domain in self._rng.sample(("chemistry", "biology", "chemistry"), count):
            near = [kind for kind in kinds if kind.domain == domain]
            found.append(self._leaf(self._kind(near, True), True))
        return found

    def _takers(
        self, inner: Expression, domains: Sequence[str] = DOMAINS, gives: str | None = None
    ) -> list[Kind]:
        """What can be asked of it, without going back to where it came from."""
        given = inner.kind
        return [
            kind
            for kind in self._bank.kinds
            if kind.takes[0] == given.gives
            and kind.domain in domains
            and gives in (None, kind.gives)
            and kind.in_split(self._split, can_nest=True)
            and (kind.domain == "mathematics" or kind.gives not in given.takes)
            and kind.name != given.name
            and len(kind.takes) < 3
        ]

    def _over(
        self, inner: Expression, kinds: Sequence[Kind], *, is_noun: bool | None = None
    ) -> Expression:
        """Ask one of the kinds of it; a second operand is a plain number."""
        usable = [kind for kind in kinds if self._wordings(kind, [inner], is_noun)]
        if not usable:
            raise _Misfit
        kind = choose(self._rng, usable)
        operands: list[str | Expression] = [inner]
        if len(kind.takes) == 2:
            operands.append(self._rng.choice(kind.items)[1])
            if kind.takes[1] == "number" and self._rng.random() < 0.3:
                operands.reverse()
        wording = self._rng.choice(self._wordings(kind, [inner], is_noun))
        return Expression(kind, wording, tuple(operands))

    def _reckon(
        self, kind: Kind, operands: Sequence[Expression], *, is_noun: bool | None = None
    ) -> Expression:
        wordings = self._wordings(kind, operands, is_noun)
        if not wordings:
            raise _Misfit
        return Expression(kind, self._rng.choice(wordings), tuple(operands))

    def _reckoning(self, arity: int) -> list[Kind]:
        kinds = self._bank.of("mathematics")
        return [kind for kind in kinds if kind.takes == ("number",) * arity]

    def _wordings(
        self, kind: Kind, inner: Sequence[Expression], is_noun: bool | None
    ) -> tuple[Wording, ...]:
        """Those that stay clear. "Twice 3 plus 4" and "the sum of 3 and 4 minus 5" can be read in
        two ways, so an infix operation neither stands inside another nor holds one."""
        found = kind.in_split(self._split, is_noun=is_noun, can_nest=True)
        is_inside = is_noun is True
        if kind.domain == "mathematics" and (
            is_inside or any(each.kind.domain == "mathematics" for each in inner)
        ):
            found = tuple(wording for wording in found if not wording.is_infix)
        return found

    # The whole

    def _ask_one(self, expression: Expression) -> _Drawn:
        text = expression.text({})
        if expression.wording.is_noun:
            text = self._joiners.draw_ask(self._rng).format(a=text)
        return text, [expression]

    def _ask_all(self, parts: Sequence[Expression], are_nouns: bool) -> str:
        joiner = self._joiners.draw(self._rng, are_nouns=are_nouns)
        texts = [part.text({}) if are_nouns else part.question({}) for part in parts]
        return joiner.join(texts, are_nouns=are_nouns)

    def _introduce(self, shared: Expression, parts: Sequence[Expression]) -> str:
        introduction, name = self._rng.choice(self._joiners.shared)
        names = {shared: name}
        if len(parts) == 1 and parts[0].wording.is_noun:
            asked = self._joiners.draw_ask(self._rng).format(a=parts[0].text(names))
        elif len(parts) == 1:
            asked = parts[0].text(names)
        else:
            joiner = self._rng.choice(self._joiners.questions[:6])
            asked = joiner.join([part.question(names) for part in parts], are_nouns=False)
        return introduction.format(a=shared.text({})) + asked
