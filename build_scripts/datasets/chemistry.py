"""The chemistry kinds: facts about the elements, from mendeleev."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from compllm.build_scripts.datasets.kinds import Kind, Operands
from compllm.build_scripts.datasets.wordings import read_wordings

_BANK_ELEMENTS = 36  # of the shipped sets
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
    group: int | None  # of lanthanides and actinides none
    block: str
    mass: int  # atomic mass, rounded
    family: str  # metal, nonmetal or metalloid
    state: str  # solid, liquid or gas at room temperature
    valence: int | None  # of main-group elements


def read_elements(count: int) -> tuple[Element, ...]:
    """The first `count` elements of the periodic table."""
    return _read_table()[:count]


def read_heavy() -> tuple[Element, ...]:
    """The elements beyond those of the shipped sets."""
    return _read_table()[_BANK_ELEMENTS:]


@cache
def _read_table() -> tuple[Element, ...]:
    # Three tables at once: its objects load an element with all it has, half a second each.
    from mendeleev.fetch import fetch_table

    series = {row["id"]: row["name"] for row in _rows(fetch_table("series"))}
    phases: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for phase in _rows(fetch_table("phasetransitions")):
        phases[phase["atomic_number"]].append(phase)
    rows = sorted(_rows(fetch_table("elements")), key=lambda row: int(row["atomic_number"]))
    return tuple(
        _element(row, series[row["series_id"]], phases[row["atomic_number"]]) for row in rows
    )


def chemistry_kinds(num_elements: int) -> tuple[Kind, ...]:
    elements = read_elements(num_elements)
    wordings = read_wordings("chemistry")

    def kind(
        name: str,
        takes: str,
        gives: str,
        pairs: Callable[[Element], tuple[object, object | None]],
        exposures: float = 12,
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
        kind("atomic_number", "element", "number", lambda e: (e.name, e.number), 20, weight=3),
        kind("symbol", "element", "symbol", lambda e: (e.name, e.symbol), 18, weight=2),
        kind("from_symbol", "symbol", "element", lambda e: (e.symbol, e.name), 20, weight=2),
        # A key made of digits is the hardest to learn: its mirror needs half of this.
        kind("from_number", "number", "element", lambda e: (e.number, e.name), 36),
        kind("period", "element", "number", lambda e: (e.name, e.period), 16, weight=2),
        kind("group", "element", "number", lambda e: (e.name, e.group), 20),
        kind("mass", "element", "number", lambda e: (e.name, e.mass), 24),
        kind("class", "element", "class", lambda e: (e.name, e.family), 12),
        kind("state", "element", "state", lambda e: (e.name, e.state), 12),
        kind("next_element", "element", "element", lambda e: (e.name, following.get(e.name)), 18),
        kind("valence", "element", "number", lambda e: (e.name, e.valence), 18),
        kind("block", "element", "block", lambda e: (e.name, e.block), 12),
        # The same number as the atomic number: each helps the other.
        kind("protons", "element", "number", lambda e: (e.name, e.number), 10),
        kind("electrons", "element", "number", lambda e: (e.name, e.number), 10),
    )


def _rows(table: Any) -> list[dict[str, Any]]:
    """The rows of a data frame."""
    rows: list[dict[str, Any]] = table.to_dict("records")
    return rows


def _element(row: dict[str, Any], series: str, phases: list[dict[str, Any]]) -> Element:
    from mendeleev.econf import ElectronicConfiguration

    shells = ElectronicConfiguration(row["electronic_configuration"])
    block, period = row["block"], int(row["period"])
    return Element(
        number=int(row["atomic_number"]),
        name=row["name"].lower(),
        symbol=row["symbol"],
        period=period,
        group=int(group) if (group := row["group_id"]) > 0 else None,  # NaN is not
        block=block,
        mass=round(row["atomic_weight"]),
        family=_family(series),
        state=_state(phases),
        valence=shells.nvalence(block, period) if block in "sp" else None,
    )


def _family(series: str) -> str:
    if series in _METALLOIDS:
        return "metalloid"
    return "nonmetal" if series in _NONMETALS else "metal"


def _state(phases: list[dict[str, Any]]) -> str:
    """Of the allotrope that stays solid longest: what people mean by the element."""
    boiling = [at for phase in phases if (at := phase["boiling_point"]) > 0]  # NaN is not
    melting = [at for phase in phases if (at := phase["melting_point"]) > 0]
    if boiling and max(boiling) < _ROOM_K:
        return "gas"
    # Carbon and helium have no melting point at normal pressure.
    return "liquid" if melting and max(melting) < _ROOM_K else "solid"
