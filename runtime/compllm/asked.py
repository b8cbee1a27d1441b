"""Which responses a question asks for: those of the leaves, and of the steps that it asks itself.

The aggregator reads the leaves (the paper's rule). "What is manganese's atomic number, and is that
number even?" asks for two things, and only the second is a leaf. A step above the leaves counts as
asked where its own question stands in the query, with its question word; a step that is only named
("twice the atomic number of manganese") does not. Used between execute and compose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from compllm.types import SubQuery

_SPACES = re.compile(r"\s+")
_MARK = re.compile(r"[?!,;:]|\.(?=\s|$)")
_NOT_TEXT = re.compile(r"[^\w#'| -]")
_ENDS = (" |", " and ")  # what may follow a question that is asked for itself
_SHORT = (("what's ", "what is "), ("who's ", "who is "), ("where's ", "where is "))
_MIN_WORDS = 3  # "What is 9?" would stand in too much


def asked_ids(
    query: str, sub_queries: Sequence[SubQuery], leaves: Sequence[int]
) -> tuple[int, ...]:
    """The ids of the leaves, and of the steps above them that the query asks itself; rising."""
    text = f" {_plain(query)} |"
    found = set(leaves)
    for line in sub_queries:
        words = _plain(line.text).rstrip("| ")
        is_question = line.text.rstrip().endswith("?") and "#" not in line.text
        stands = any(f" {words}{end}" in text for end in _ENDS)
        if is_question and stands and len(words.split()) > _MIN_WORDS:
            found.add(line.id)
    return tuple(sorted(found))


def _plain(text: str) -> str:
    """Small letters, marks as "|", contractions spelled out."""
    text = _NOT_TEXT.sub(" ", _MARK.sub(" | ", text.casefold()))
    text = _SPACES.sub(" ", text).strip()
    for short, long in _SHORT:
        text = text.replace(short, long)
    return text
