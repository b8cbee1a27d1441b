"""Text that repeats itself: small models end in loops ("the gold symbol; the gold symbol; ...").

Used by execute on a node's whole response, and by compose on the answer while it streams. A loop is
an end of the text with a period: the same words, at least MIN_COPIES times one after another. A
word of more than LONG_WORD characters is looked at character by character. A list loops too where
nothing new has come for as many items as it has, and one of them came MIN_COPIES times, in whatever
order.
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
_MARKER = r"[ \t]*(?:[-*\u2022]|\d+[.)])[ \t]+"  # of an item on a line of its own
_ITEM = re.compile(r"[^,;\n]*[^,;\s][^,;\n]*")
# What begins anew: a line without a marker (a poem's), a sentence, what follows a colon.
_BREAK = re.compile(rf"\n(?!{_MARKER})|(?<!\d)[.:!?]\s+(?=\S)")
_BEFORE_ITEM = re.compile(rf"\s*(?:{_MARKER})?(?:(?:and|or)\s+)?", re.IGNORECASE)
_MAX_ITEM_WORDS = 5  # a longer one is a clause, and belongs to no list
_MIN_ITEMS = 3  # different ones: "heads, tails, heads, heads" is no list
_MIN_ITEM_CHARS = 4  # of the one that repeats: codons and letters make sequences


def cut_loop(text: str, copies: int = MIN_COPIES) -> str | None:
    """The text with one copy left of what its end says `copies` times or more; None where it does
    not.

    Words compare without case and punctuation, the last one may be unfinished. Numbers alone are no
    loop: sequences and decimals repeat.
    """
    kept_list = _cut_list(text, copies)
    if kept_list is not None:
        return kept_list
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


def _cut_list(text: str, copies: int) -> str | None:
    """The text up to where the list at its end has nothing new, where that list loops."""
    items = _list_at_end(text)
    num_new = _num_new(items)
    keys = [key for key, _ in items]
    again, num_different = keys[num_new:], len(set(keys[:num_new]))
    if num_different < _MIN_ITEMS or len(again) < num_different:
        return None
    if not any(
        keys.count(key) >= copies and again.count(key) >= copies - 1
        for key in set(again)
        if len(key) >= _MIN_ITEM_CHARS and any(map(str.isalpha, key))
    ):
        return None
    return text[: items[num_new - 1][1]].rstrip(_EDGE)


def _list_at_end(text: str) -> list[tuple[str, int]]:
    """The items of the list that the text ends with: what they say, and where they end."""
    start = max((found.end() for found in _BREAK.finditer(text)), default=0)
    items: list[tuple[str, int]] = []
    for found in _ITEM.finditer(text, start):
        key = _BEFORE_ITEM.sub("", found[0], count=1).strip(" \t.!?\"'()").casefold()
        if len(key.split()) > _MAX_ITEM_WORDS:
            items.clear()
        elif key:
            items.append((key, found.end()))
    return items


def _num_new(items: Sequence[tuple[str, int]]) -> int:
    """How many items stand before those that all stood before; the last may be unfinished."""
    seen: set[str] = set()
    num_new = 0
    for place, (key, _) in enumerate(items):
        is_last = place == len(items) - 1
        if not (any(each.startswith(key) for each in seen) if is_last else key in seen):
            num_new = place + 1
        seen.add(key)
    return num_new


def _without_repeats(text: str) -> str:
    """The text without the items at its end that its list has already: more of them may follow."""
    items = _list_at_end(text)
    num_new = _num_new(items)
    has_list = len({key for key, _ in items[:num_new]}) >= _MIN_ITEMS
    return text[: items[num_new - 1][1]] if has_list and num_new < len(items) else text


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
            whole = _without_repeats(cut_loop(whole, 2) or _without_copy(whole)).rstrip(_EDGE)
        new, self._num_out = whole[self._num_out :], max(self._num_out, len(whole))
        return new
