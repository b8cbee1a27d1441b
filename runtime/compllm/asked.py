"""Which responses a question asks for: those of the leaves, and of the steps that it asks itself.

The aggregator reads the leaves (the paper's rule). "What is manganese's atomic number, and is that
number even?" asks for two things, and only the second is a leaf. So the query is split into
clauses, and each step of the plan belongs to the clause that has most of its words. A clause that
asks for something asks for those of its steps that no other of its steps uses: "what is twice
neon's atomic number" asks for the product alone. An asking clause without a step of its own ("...,
what do I get?") asks for the steps of the clause before it. Used between execute and compose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from compllm.prompts import REFERENCE
from compllm.types import SubQuery

_HEADS = (
    r"what|which|how|who|whose|where|when|is|are|does|do|has|have|can|in which|tell|give|name|say|"
    r"let me know"
)
_NOUNS = r"the|its|their|that|whether|also|finally"
_CLAUSE = re.compile(
    rf"[?!;]+|\.(?=\s|$)"
    rf"|[,:] ?(?:(?:and|then|also|finally) )*(?=(?:{_HEADS}|(?:{_NOUNS})(?![^?!;:,]* or ))\b)"
    rf"| (?:and|then) (?:then )?(?=(?:{_HEADS}|whether)\b)"
)
_ASKS = re.compile(
    r"\b(?:what|which|how [a-z]+|who|where|whose)\b"
    r"|^(?:(?:and|then|also|please|finally) )*(?:is|are|does|do|has|have|its|their)\b"
    r"|\b(?:tell me|let me know|give me|name|state|say|list|i need|i want|i would like|show me)\b"
    r"|\bi'(?:d like|m after)\b"
    r"|^(?:(?:and|then|also|please|first) )*"
    r"(?:find|identify|transcribe|translate|write (?:the|down))\b"
)
_CONDITION = re.compile(
    r"^(?:(?:and|then) )*(?:if|when|given|suppose|assume|let(?! me know)|"
    r"write(?! (?:the|down)\b)|call|take|start|starting)\b"
)
_CONTINUES = re.compile(rf"^(?:(?:and|then|also|finally) )*(?:{_NOUNS})\b")
_OPERATION = re.compile(
    r"^(?:add|subtract|multiply|divide|double|triple|halve|square|cube|round|sum|compare)\b"
)
_RESULT = re.compile(r"\b(?:what|which|how much|how many|name)\b")  # asks, and names no step
_BARE = re.compile(  # "what number is that", "which element do you get": of the clause before
    r"^(?:(?:and|then|so) )*(?:what|which)(?: (?!of\b)[a-z]+){0,3} "
    r"(?:(?:is|are|was) (?:that|this|it)(?: called)?|"
    r"(?:do|does|did|would|will) (?:you|i|we|that|it) "
    r"(?:get|have|make|give|be|come to|end up with|arrive at|reach))(?: (?:then|now|in the end))?$"
)
_ANY = {"number", "value", "result", "answer"}  # in such a clause they say nothing
_AND_ITS = re.compile(r" and (?=(?:its|their)\b)")
_NAMES = re.compile(  # what is asked before "and its ...", unless both go into one step
    r"(?:what|which|name|tell|give|say|state|find|write|list)\b"
    r"(?!.*\b(?:sum|product|difference|total|add|between|multiply|compare|larger|smaller|both)\b)"
)
_WORD = re.compile(r"[a-z0-9]+(?:[-'][a-z0-9]+)*")
_STOP = frozenset(
    _WORD.findall(
        "a an and are as by do does for from have has how in is it its many me much of on or "
        "please some that the their them then there they this to was what which who with"
    )
)
_SAME = {"twice": "double", "doubled": "double", "half": "halve", "halved": "halve",
         "sum": "add", "plus": "add", "added": "add", "total": "add", "minus": "subtract",
         "away": "subtract", "times": "multiply", "multiplied": "multiply", "squared": "square",
         "tripled": "triple", "translate": "encode", "greater": "more", "larger": "more",
         "above": "more"}  # fmt: skip


def asked_ids(
    query: str, sub_queries: Sequence[SubQuery], leaves: Sequence[int]
) -> tuple[int, ...]:
    """The ids of the leaves, and of the steps above them that the query asks itself; rising."""
    clauses, places = _placed(_clauses(query), sub_queries)
    used = {  # in its own clause
        parent
        for line in sub_queries
        for parent in line.parents
        if places[parent] == places[line.id]
    }
    found = set(leaves)
    for place in _asking(clauses):
        here = [line.id for line in sub_queries if places[line.id] == place]
        if not here and _RESULT.search(clauses[place]):
            here = [line.id for line in sub_queries if places[line.id] == place - 1]
        found.update(each for each in here if each not in used)
    return tuple(sorted(found))


def _clauses(query: str) -> list[str]:
    """The clauses of the query in small letters."""
    text = " ".join(query.casefold().replace("'s ", " is ").split())
    found: list[str] = []
    for clause in (each.strip(" ,:") for each in _CLAUSE.split(text)):
        first, *others = _AND_ITS.split(clause)
        found += [first, *others] if others and _NAMES.search(first) else [clause]
    return [clause for clause in found if clause]


def _asking(clauses: Sequence[str]) -> list[int]:
    """The places of the clauses that ask, a list that one of them begins included."""
    head, *rest = clauses or [""]
    is_named = not (_ASKS.search(head) or _CONDITION.search(head) or _OPERATION.search(head))
    if rest and is_named and all(_CONTINUES.search(clause) for clause in rest):
        return list(range(len(clauses)))  # "twice seven, then the element with that number"
    asking: list[int] = []
    for place, clause in enumerate(clauses):
        follows = place - 1 in asking and _CONTINUES.search(clause) is not None
        if (follows or _ASKS.search(clause)) and not _CONDITION.search(clause):
            asking.append(place)
    return asking


def _placed(
    clauses: Sequence[str], sub_queries: Sequence[SubQuery]
) -> tuple[list[str], dict[int, int]]:
    """The clauses, and the place among them of each step by its id: the clause with most of its
    words, or its last parent's where none has any.

    A step cannot come before its parents. Where its words do ("the largest of the first number,
    the second and the third"), these clauses are one.
    """
    clauses = list(clauses)
    words = [_words(clause) - (_ANY if _BARE.search(clause) else set()) for clause in clauses]
    asking = _asking(clauses)
    places: dict[int, int] = {}
    for line in sub_queries:
        first = max((places[parent] for parent in line.parents), default=0)
        own = _words(REFERENCE.sub(" ", line.text))
        fit = [  # of equal ones a clause that asks, and the one with fewer other words
            (count, place in asking, -len(words[place])) if count else (0, False, 0)
            for place, count in enumerate(len(own & each) for each in words)
        ]
        later = max(range(first, len(fit)), key=fit.__getitem__, default=0)
        best = max(range(len(fit)), key=fit.__getitem__, default=0)
        if best < first and fit[best][0] >= max(fit[later][0], 1):
            whole = ", ".join(clauses[best : first + 1])
            return _placed([*clauses[:best], whole, *clauses[first + 1 :]], sub_queries)
        places[line.id] = later
    return clauses, places


def _words(text: str) -> set[str]:
    """Words that say what it is about, in one form each."""
    found = (word.removesuffix("'s") for word in _WORD.findall(text.casefold()))
    stems = (word if word.isdigit() else word.rstrip("s") for word in found if word not in _STOP)
    return {_SAME.get(word, word) for word in stems}
