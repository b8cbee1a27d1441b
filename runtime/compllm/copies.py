"""Copies in a plan: lines that a generator writes a second time. Between decompose and the graph.

A copy is a line with the text and the parents of an earlier one. It is left out, and what refers to
it refers to the earlier one; the lines after it move up by one. Small generators loop, and most of
them until their last line: a few copies in a row end the plan.
"""

from __future__ import annotations

from compllm.prompts import REFERENCE
from compllm.types import SubQuery

_MAX_IN_A_ROW = 3  # "What is 5 plus 5 plus 5?" has two that are meant


class CopyFilter:
    """Takes a plan's lines as they are written, gives those of the plan to run."""

    def __init__(self) -> None:
        self.num_copies = 0
        self._places: dict[int, int] = {}  # id as written -> id in the plan
        self._ids: dict[tuple[str, tuple[int, ...]], int] = {}  # by text and parents
        self._num_in_a_row = 0

    @property
    def is_loop(self) -> bool:
        """The generator only repeats itself: nothing more is to be expected."""
        return self._num_in_a_row >= _MAX_IN_A_ROW

    def take(self, line: SubQuery) -> SubQuery | None:
        """The line as it stands in the plan; None for a copy."""
        parents = tuple(sorted({self._places[parent] for parent in line.parents}))
        text = REFERENCE.sub(
            lambda found: (
                f"#{self._places[int(found[1])]}"
                if int(found[1]) in line.parents  # of no parent it is only text
                else found[0]
            ),
            line.text,
        )
        earlier = self._ids.get((text, parents))
        if earlier is not None:
            self._places[line.id] = earlier
            self.num_copies += 1
            self._num_in_a_row += 1
            return None
        self._num_in_a_row = 0
        number = self._places[line.id] = self._ids[text, parents] = len(self._ids) + 1
        return SubQuery(number, text, parents)
