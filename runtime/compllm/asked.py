"""Which responses a question asks for: those of the leaves, and of the steps that it asks itself.

The aggregator reads the leaves (the paper's rule). "What is manganese's atomic number, and is that
number even?" asks for two things, and only the second is a leaf. A step above the leaves counts as
asked where its own question stands in the query, with its question word; a step that is only named
("twice the atomic number of manganese") does not. Where a step has `#k`, the query has a pronoun:
"how many codons does it have" is "How many codons does #1 have?", "what is its period" is "What is
the period of #1?". A query of as many asking clauses as steps asks for every step. Used between
execute and compose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from compllm.prompts import REFERENCE
from compllm.types import SubQuery

_SPACES = re.compile(r"\s+")
_MARK = re.compile(r"[?!,;:]|\.(?=\s|$)")
_NOT_TEXT = re.compile(r"[^\w#'| -]")
_ENDS = (" |", " and ")  # what may follow a question that is asked for itself
_SHORT = (("what's ", "what is "), ("who's ", "who is "), ("where's ", "where is "))
_MIN_WORDS = 3  # "What is 9?" would stand in too much
_PRONOUN = r"(?:it|they|this|that|(?:that|this|the) (?:number|result|answer|element|amino acid))"
_PROPERTY = re.compile(r"what is the (.+) of #\d+")
_NAMED = re.compile(r"what is (the .+)")
_CLAUSE = re.compile(
    r"[?!.;]|[,:] (?:and |then )*(?=(?:what|which|how|who|where|is|are|does|do|its|in which) )"
    r"| and (?=(?:what|which|how|who|where|is|are|does|do) )"
)
_ASKS = re.compile(r"\b(?:what|which|how many|how much|who|where)\b|^(?:is|are|does|do|its) ")
_GIVE = r"(?:tell me|give me|name|state|say)"


def asked_ids(
    query: str, sub_queries: Sequence[SubQuery], leaves: Sequence[int]
) -> tuple[int, ...]:
    """The ids of the leaves, and of the steps above them that the query asks itself; rising."""
    if _num_asking(query) >= len(sub_queries):
        return tuple(sorted(line.id for line in sub_queries))
    text = f" {_plain(query)} |"
    found = set(leaves)
    for line in sub_queries:
        words = _plain(line.text).rstrip("| ")
        is_question = line.text.rstrip().endswith("?") and len(words.split()) > _MIN_WORDS
        if is_question and any(_stands(shape, text) for shape in _shapes(words)):
            found.add(line.id)
    return tuple(sorted(found))


def _num_asking(query: str) -> int:
    """How many clauses of the query ask for something."""
    text = _SPACES.sub(" ", query.casefold().replace("'s ", " is "))
    clauses = (clause.strip(" ,:").removeprefix("and ") for clause in _CLAUSE.split(text))
    return sum(_ASKS.search(clause) is not None for clause in clauses)


def _shapes(words: str) -> list[str]:
    """Patterns of what the query may say for a line, whose plain words these are."""
    shapes = [_PRONOUN.join(map(re.escape, REFERENCE.split(words)[::2]))]
    if match := _PROPERTY.fullmatch(words):
        shapes.append(rf"what is (?:its|their) {re.escape(match[1])}")
    elif match := _NAMED.fullmatch(words):
        shapes.append(f"{_GIVE} {re.escape(match[1])}")
    return shapes


def _stands(shape: str, text: str) -> bool:
    return any(re.search(f" {shape}{re.escape(end)}", text) for end in _ENDS)


def _plain(text: str) -> str:
    """Small letters, marks as "|", contractions spelled out."""
    text = _NOT_TEXT.sub(" ", _MARK.sub(" | ", text.casefold()))
    text = _SPACES.sub(" ", text).strip()
    for short, long in _SHORT:
        text = text.replace(short, long)
    return text
