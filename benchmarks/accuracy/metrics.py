"""Is an answer right? Exact match after a stated normalisation, and a laxer look inside sentences.

Normalised: Unicode NFKC (so H₂O is H2O), lower case, white space collapsed, quotes and closing
punctuation off every word, thousands commas and a trailing `.0` off numbers, and the articles a, an
and the off where a longer word follows (a lone "a" may be a nucleotide). An answer in several parts
(`; ` or lines) matches part by part, in order.
"""

from __future__ import annotations

import re
import unicodedata

_AROUND = ".,;:!?\"'`*()[]"  # what surrounds a word without being part of it
_ARTICLES = {"a", "an", "the"}
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-"))
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WHOLE = re.compile(r"^([+-]?\d+)\.0+$")
_PARTS = re.compile(r"[;\n]")


def words(text: str) -> tuple[str, ...]:
    """The normalised words of a text."""
    text = unicodedata.normalize("NFKC", text).translate(_DASHES).lower()
    text = _THOUSANDS.sub("", text)
    bare = [_WHOLE.sub(r"\1", word) for raw in text.split() if (word := _bare(raw))]
    kept = []
    for at, word in enumerate(bare):
        following = bare[at + 1] if at + 1 < len(bare) else ""
        if not (word in _ARTICLES and len(following) >= 3 and following.isalpha()):
            kept.append(word)
    return tuple(kept)


def parts(text: str) -> tuple[tuple[str, ...], ...]:
    """The answers that a text gives, each as its normalised words."""
    return tuple(found for part in _PARTS.split(text) if (found := words(part)))


def is_exact(answer: str, gold: str) -> bool:
    """The same parts in the same order."""
    return parts(answer) == parts(gold)


def is_verbatim(answer: str, gold: str) -> bool:
    """The same characters, but for surrounding white space."""
    return answer.strip() == gold.strip()


def contains_all(answer: str, gold: str) -> bool:
    """Every part of the gold answer stands in the answer as a run of whole words, each in a place
    of its own. Laxer than exact: a sentence counts, and so does one that says more than asked."""
    # The empty word between two parts matches nothing, and neither does what is used up.
    left = [word for part in parts(answer) for word in (*part, "")]
    for part in sorted(parts(gold), key=len, reverse=True):
        at = _find(left, part)
        if at is None:
            return False
        left[at : at + len(part)] = [""]
    return bool(parts(gold))


def _bare(word: str) -> str:
    """The word without what surrounds it; brackets that belong to a formula stay."""
    bare = word.strip(_AROUND)
    # Ca(OH)2 keeps both its brackets anyway; Fe(III) would lose its last one.
    if bare.count("(") > bare.count(")") and word.rstrip(".,;:!?\"'`*").endswith(")"):
        bare += ")"
    return bare


def _find(haystack: list[str], needle: tuple[str, ...]) -> int | None:
    size = len(needle)
    for at in range(len(haystack) - size + 1):
        if tuple(haystack[at : at + size]) == needle:
            return at
    return None
