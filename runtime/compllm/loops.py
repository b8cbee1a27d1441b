"""Text that repeats itself: small models end in loops ("the gold symbol; the gold symbol; ...").

Used by execute on a node's whole response, and by compose on the answer while it streams. A loop is
an end of the text with a period: the same words, at least MIN_COPIES times one after another. A
word of more than LONG_WORD characters is looked at character by character.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MIN_COPIES = 3
MIN_CHARS = 12  # of all copies together: "ha ha ha" may be meant
LONG_WORD = 40
_MAX_PERIOD = 40  # words, or characters of a long word
_WORD = re.compile(r"\S*\w\S*")  # marks alone are no words
_CLAUSE_END = re.compile(r"[;.\n]")
_EDGE = " \t\n;:,"


def cut_loop(text: str, copies: int = MIN_COPIES) -> str | None:
    """The text with one copy left of what its end says `copies` times or more; None where it does
    not.

    Words compare without case and punctuation, the last one may be unfinished. Numbers alone are no
    loop: sequences and decimals repeat.
    """
    words = list(_WORD.finditer(text))
    if words and len(words[-1][0]) > LONG_WORD:
        start = words[-1].start()
        length = _kept(text[start:], copies)
        return None if length is None else text[: start + length]
    keys = [word[0].strip(".,;:!?\"'()").casefold() or word[0] for word in words]
    kept = _kept(keys, copies)
    if kept is None or not any(key.isalpha() for key in keys[kept:]):
        return None
    start = words[kept - 1].start()
    if len(text) - words[0].start() < MIN_CHARS:
        return None
    return text[: start + len(words[kept - 1][0])].rstrip(_EDGE)


def _kept(keys: Sequence[str], copies: int) -> int | None:
    """How many of the keys are left when the loop at the end keeps its first copy."""
    for period in range(1, min(_MAX_PERIOD, len(keys) // copies) + 1):
        first = len(keys)
        while first > period and _is_same(keys, first - 1, period):
            first -= 1
        first -= period  # the first copy, which has none before it
        if len(keys) - first >= max(copies * period, MIN_CHARS if isinstance(keys, str) else 0):
            return first + period
    return None


def _is_same(keys: Sequence[str], place: int, period: int) -> bool:
    earlier = keys[place - period]
    if place == len(keys) - 1:
        return earlier.startswith(keys[place])
    return earlier == keys[place]


def _without_copy(text: str) -> str:
    """The text without its last clause, as long as that is the beginning of the clause before."""
    *before, last = _CLAUSE_END.split(text)
    if last.strip() and before and before[-1].strip().startswith(last.strip()):
        return text[: len(text) - len(last)]
    return text


class LoopGuard:
    """A text while it streams: what may be one more copy waits until it is known not to be."""

    def __init__(self, copies: int = MIN_COPIES) -> None:
        self.is_looping = False
        self._copies = copies
        self._text = ""
        self._num_out = 0  # characters handed out

    def push(self, text: str, *, is_last: bool = False) -> str:
        """What of the text so far can be handed out now. Once `is_looping`, the text is over."""
        self._text += text
        whole = self._text
        kept = cut_loop(whole, self._copies)
        if kept is not None:
            self.is_looping, whole = True, kept
        elif not is_last:
            whole = (cut_loop(whole, 2) or _without_copy(whole)).rstrip(_EDGE)
        new, self._num_out = whole[self._num_out :], max(self._num_out, len(whole))
        return new
