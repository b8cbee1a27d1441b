"""The bank's kinds over the well-known elements beyond its own (gold, lead, uranium ...)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from compllm.build_scripts.datasets.bank import Bank
from compllm.build_scripts.datasets.chemistry import read_heavy
from compllm.build_scripts.datasets.forms import read_facts
from compllm.build_scripts.datasets.kinds import Kind


def heavy_kinds(bank: Bank) -> list[Kind]:
    """The bank's kinds over the well-known elements beyond its own."""
    beyond = read_heavy()
    elements = [each for each in beyond if each.name in read_facts()["heavy"]]
    after = {each.name: follower.name for each, follower in pairwise(beyond)}
    pairs: dict[str, list[tuple[str | int, str | int]]] = {
        "atomic_number": [(e.name, e.number) for e in elements],
        "symbol": [(e.name, e.symbol) for e in elements],
        "from_symbol": [(e.symbol, e.name) for e in elements],
        "from_number": [(e.number, e.name) for e in elements],
        "protons": [(e.name, e.number) for e in elements],
        "electrons": [(e.name, e.number) for e in elements],
        "period": [(e.name, e.period) for e in elements],
        "state": [(e.name, e.state) for e in elements],
        "class": [(e.name, e.family) for e in elements],
        "mass": [(e.name, e.mass) for e in elements],
        "block": [(e.name, e.block) for e in elements],
        "group": [(e.name, e.group) for e in elements if e.group is not None],
        "valence": [(e.name, e.valence) for e in elements if e.valence is not None],
        "next_element": [(e.name, after[e.name]) for e in elements],
    }
    kinds = []
    for kind in bank.of("chemistry"):
        if kind.name in pairs:
            table = {str(asked): str(answer) for asked, answer in pairs[kind.name]}
            items = tuple((asked,) for asked in table)
            kinds.append(replace(kind, items=items, solve=table.__getitem__))
    return kinds
