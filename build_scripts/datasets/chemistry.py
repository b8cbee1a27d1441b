"""The chemistry kinds: facts about the elements, from mendeleev."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from compllm.build_scripts.datasets.kinds import Kind, Operands
from compllm.build_scripts.datasets.wordings import read_wordings

MAX_ELEMENTS = 56  # the lanthanides after them have no group
_ROOM_K = 298.15
_METALLOIDS = ("Metalloids",)
_NONMETALS = ("Nonmetals", "Noble gases", "Halogens")


@dataclass(frozen=True, slots=True)
class Element:
    number: int
    name: str
    symbol: str
    period: int
    group: int
    block: str
    mass: int  # atomic mass, rounded
    family: str  # metal, nonmetal or metalloid
    state: str  # solid, liquid or gas at room temperature
    valence: int | None  # of main-group elements


@cache
def read_elements(count: int) -> tuple[Element, ...]:
    """The first `count` elements of the periodic table."""
    from mendeleev import element

    return tuple(_element(element(number)) for number in range(1, count + 1))


def chemistry_kinds(num_elements: int) -> tuple[Kind, ...]:
    elements = read_elements(num_elements)
    wordings = read_wordings("chemistry")

    def kind(
        name: str,
        takes: str,
        gives: str,
        pairs: Callable[[Element], tuple[object, object | None]],
        exposures: float = 10,
        weight: float = 1.0,
    ) -> Kind:
        table = {
            str(asked): str(answer) for asked, answer in map(pairs, elements) if answer is not None
        }
        items: tuple[Operands, ...] = tuple((asked,) for asked in table)
        return Kind(
            name, "chemistry", (takes,), gives, items, table.__getitem__, wordings[name],
            exposures=exposures, dependent=0.25, weight=weight,
        )  # fmt: skip

    following = {e.name: after.name for e, after in pairwise(elements)}
    return (
        kind("atomic_number", "element", "number", lambda e: (e.name, e.number), 14, weight=3),
        kind("symbol", "element", "symbol", lambda e: (e.name, e.symbol), 12, weight=2),
        kind("from_symbol", "symbol", "element", lambda e: (e.symbol, e.name), 14, weight=2),
        # A key made of digits is the hardest to learn: its mirror needs half of this.
        kind("from_number", "number", "element", lambda e: (e.number, e.name), 24),
        kind("period", "element", "number", lambda e: (e.name, e.period), 10, weight=2),
        kind("group", "element", "number", lambda e: (e.name, e.group), 12),
        kind("mass", "element", "number", lambda e: (e.name, e.mass), 14),
        kind("class", "element", "class", lambda e: (e.name, e.family), 8),
        kind("state", "element", "state", lambda e: (e.name, e.state), 8),
        kind("next_element", "element", "element", lambda e: (e.name, following.get(e.name)), 10),
        kind("valence", "element", "number", lambda e: (e.name, e.valence), 12),
        kind("block", "element", "block", lambda e: (e.name, e.block), 8),
        # The same number as the atomic number: each helps the other.
        kind("protons", "element", "number", lambda e: (e.name, e.number), 6),
        kind("electrons", "element", "number", lambda e: (e.name, e.number), 6),
    )


def _element(data: Any) -> Element:
    return Element(
        number=data.atomic_number,
        name=data.name.lower(),
        symbol=data.symbol,
        period=data.period,
        group=data.group_id,
        block=data.block,
        mass=round(data.atomic_weight),
        family=_family(data.series),
        state=_state(data),
        valence=data.nvalence() if data.block in "sp" else None,
    )


def _family(series: str) -> str:
    if series in _METALLOIDS:
        return "metalloid"
    return "nonmetal" if series in _NONMETALS else "metal"


def _state(data: Any) -> str:
    boiling = [phase.boiling_point for phase in data.phase_transitions if phase.boiling_point]
    melting = [phase.melting_point for phase in data.phase_transitions if phase.melting_point]
    if boiling and max(boiling) < _ROOM_K:
        return "gas"
    # Carbon and helium have no melting point at normal pressure.
    return "liquid" if melting and max(melting) < _ROOM_K else "solid"
