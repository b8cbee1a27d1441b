"""All kinds together, and which of them give a value that another one takes."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

from compllm.build_scripts.datasets.biology import biology_kinds
from compllm.build_scripts.datasets.chemistry import chemistry_kinds
from compllm.build_scripts.datasets.kinds import Kind, Operands
from compllm.build_scripts.datasets.mathematics import mathematics_kinds

DOMAINS = ("chemistry", "biology", "mathematics")


class Bank:
    """Every kind, by name, by domain and by what it gives."""

    def __init__(self, kinds: tuple[Kind, ...]) -> None:
        self.kinds = kinds
        self._by_type: dict[str, list[Kind]] = defaultdict(list)
        self._by_value: dict[tuple[str, str], list[tuple[Kind, Operands]]] = defaultdict(list)
        for kind in kinds:
            self._by_type[kind.gives].append(kind)
            for operands in dict.fromkeys(kind.items):
                self._by_value[kind.gives, kind.answer(operands)].append((kind, operands))

    def of(self, domain: str) -> list[Kind]:
        return [kind for kind in self.kinds if kind.domain == domain]

    def givers(self, wanted: str) -> list[Kind]:
        return self._by_type.get(wanted, [])

    def sources(self, wanted: str, value: str) -> list[tuple[Kind, Operands]]:
        """The items whose answer is this value of this type."""
        return self._by_value.get((wanted, value), [])


@cache
def read_bank(num_elements: int) -> Bank:
    return Bank((*chemistry_kinds(num_elements), *biology_kinds(), *mathematics_kinds()))
