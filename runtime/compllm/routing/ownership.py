"""Whether an expert owns any part of a question. Between route and the graph.

A plan must earn its cost: where the base would answer every sub-query that stands alone, it reads
the whole question better than its parts. So the lines of a plan are held back until one without
parents goes to an expert. When none does, the whole question goes to the base in one node, as if
the base alone had been asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from compllm.types import Route, SubQuery

Routed = tuple[SubQuery, Route]
REASON = "no expert owns a part of the question"


@dataclass(slots=True)
class Ownership:
    """Holds back the lines of a plan that nothing shows yet to be an expert's."""

    is_owned: bool = False
    held: list[Routed] = field(default_factory=list)

    def admit(self, lines: Iterable[Routed], *, is_given: bool = False) -> list[Routed]:
        """The lines that may run now, in their order. `is_given`: they are not the generator's, and
        run as they are."""
        lines = list(lines)
        if is_given:
            self.held.clear()
            return lines
        self.held += lines
        self.is_owned |= any(not line.parents and not route.is_fallback for line, route in lines)
        if not self.is_owned:
            return []
        released, self.held = self.held, []
        return released

    @property
    def is_unowned(self) -> bool:
        """Whether lines are left that no expert owns a part of."""
        return bool(self.held)
