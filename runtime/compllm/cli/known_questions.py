"""Files of a user's questions with the answers that count as right, for `expert test` and `eval`.

A file is text with a question a line, JSON lines or CSV. A line may have `answer`, or `accept`: a
list of parts, each a list of alternatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compllm.errors import ConfigError

Parts = tuple[tuple[str, ...], ...]  # alternatives of each part of an answer


@dataclass(frozen=True, slots=True)
class Item:
    """A question, and what its answer must hold; nothing where that is not known."""

    question: str
    expected: Parts = ()

    @property
    def shown(self) -> str:
        """What is expected, for people."""
        return "; ".join(" or ".join(part) for part in self.expected) or "-"

    def is_right(self, answer: str) -> bool:
        """Whether an alternative of every part stands in the answer, as whole words or numbers."""
        from compllm.build_scripts.calibration.questions import is_right

        return bool(self.expected) and all(is_right(answer, part) for part in self.expected)


def read_items(path: Path) -> tuple[Item, ...]:
    """Raises ConfigError that names the line, and for a file without questions."""
    from compllm.build_scripts.own.examples import read_records, text_of

    items = []
    for number, record in read_records(path):
        where = f"{path}: line {number}"
        items.append(Item(text_of(record, "question", where), _expected(record, where)))
    if not items:
        raise ConfigError(f"{path} has no question: give one a line, or JSON lines or CSV")
    return tuple(items)


def _expected(record: dict[str, Any], where: str) -> Parts:
    from compllm.build_scripts.own.examples import text_of

    accept = record.get("accept")
    if accept is None:
        if record.get("answer") in (None, ""):
            return ()
        return ((text_of(record, "answer", where),),)
    is_list = isinstance(accept, list) and bool(accept)
    if not is_list or not all(isinstance(part, list) and part for part in accept):
        raise ConfigError(f"{where}: accept is {accept!r}: expected a list of lists of texts")
    return tuple(
        tuple(text_of({"accept": text}, "accept", where) for text in part) for part in accept
    )
