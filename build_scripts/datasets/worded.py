"""Numbers in words: "What is seven times eight?", "the thirty-fourth element".

lines.py and refresh.py write a share of their questions so.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_LARGEST = 120  # atomic numbers, and sums of small numbers
_NUMBER = re.compile(r"(?<![#\d])\d+")  # not that of `#12`
_SIGNS = re.compile(r"[-+*/=%^()]|\d[a-z]|\d \w \d")  # the last two: "3x", "3 x 4"


def worded(text: str) -> str:
    """The text with its numbers in words; `#k` stays. So does a text with signs, or with a number
    over 120."""
    numbers = _NUMBER.findall(text)
    if not numbers or max(map(int, numbers)) > _LARGEST or _SIGNS.search(text):
        return text
    said = _NUMBER.sub(lambda found: _words().number_to_words(found[0], andword=""), text)
    return said[0].upper() + said[1:] if text[0].isdigit() else said


def ordinal(number: int, *, in_words: bool) -> str:
    """34: "34th", or "thirty-fourth"."""
    place = str(_words().ordinal(number))
    return str(_words().number_to_words(place, andword="")) if in_words else place


@cache
def _words() -> Any:
    import inflect

    return inflect.engine()
