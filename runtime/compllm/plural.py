"""Counted nouns for people: "1 node", "2 nodes", "1 sub-query", "3 sub-queries"."""

from __future__ import annotations

_VOWELS = "aeiou"


def counted(number: int, noun: str) -> str:
    """The number and the noun; `noun` is the singular, its last word takes the plural's end."""
    if number == 1:
        return f"{number} {noun}"
    if noun.endswith("y") and noun[-2:-1] not in _VOWELS:
        return f"{number} {noun[:-1]}ies"
    is_hissing = noun.endswith(("s", "x", "ch", "sh"))
    return f"{number} {noun}{'es' if is_hissing else 's'}"
