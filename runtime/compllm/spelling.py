"""Words that an expert reads letter by letter: how its prompts spell them, and its responses back.

A small model reads a word as one or two tokens and hardly knows the letters in it. An expert that
was trained on letters apart ("A U G") names in the catalogue, as a pattern, the words to spell so
(`spell`). People write AUG, A-U-G or A U G: the expert reads one of them, and its response is
written as the question was. Used by execute, around the prompt of a node.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from compllm.types import Expert

_APART = re.compile(r"\b[A-Z](?: [A-Z])+\b")
_LETTER = re.compile(r"[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Spelling:
    """A question as an expert reads it, and how its letters were written."""

    text: str
    joint: str | None = None  # between letters: "" or "-"; None: nothing was spelled
    is_lower: bool = False

    def back(self, response: str) -> str:
        """Letters apart in the response, written as in the question."""
        if self.joint is None:
            return response
        joint = self.joint

        def written(found: re.Match[str]) -> str:
            word = found[0].replace(" ", joint)
            return word.lower() if self.is_lower else word

        return _APART.sub(written, response)


def spelled(expert: Expert, text: str) -> Spelling:
    """The text with the expert's words spelled apart, in capitals; as it is without any."""
    if not expert.spell:
        return Spelling(text)
    pattern = re.compile(expert.spell)
    first = pattern.search(text)
    if first is None:
        return Spelling(text)
    apart = pattern.sub(lambda found: " ".join(_LETTER.findall(found[0])).upper(), text)
    return Spelling(apart, "-" if "-" in first[0] else "", first[0].islower())


def spelled_pairs(
    expert: Expert, pairs: Sequence[tuple[str, str | None]]
) -> tuple[tuple[str, str | None], ...]:
    """Questions and responses of parents, as the expert reads them."""
    if not expert.spell:
        return tuple(pairs)
    return tuple(
        (spelled(expert, asked).text, response and spelled(expert, response).text)
        for asked, response in pairs
    )
