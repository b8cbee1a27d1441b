"""The part of a long text that asks: what an encoder is given where it cannot read it all.

An encoder has room for some hundred tokens and takes the first ones. A question often stands at the
end, and what comes before it may be about something else. Used by embed; pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_ENDS = "\u3002\uff01\uff1f\u061f"  # of sentences, with no blank after them: Chinese, Arabic
_MARKS = ("?", "\uff1f", "\u061f")
_BETWEEN = re.compile(rf"(?<=[.?!])\s+|(?<=[{_ENDS}])|\s*\n\s*")  # sentences
_REQUEST = re.compile(
    r"\b(?:(?:tell|give|show|ask) (?:me|us|you)|i (?:want|need|would like)|i'd like|let me know)\b",
    re.IGNORECASE,
)
_WORDS = "what|which|who|whom|whose|where|when|why|how"
_BEGINS = re.compile(
    rf"(?:(?:and|but|so|then|now|also|please|finally),? )*(?:{_WORDS}|in which|"
    r"is|are|was|were|do|does|did|can|could|will|would|should|has|have|"
    r"name|say|list|state|find|calculate|compute|solve|count|add|subtract|multiply|divide|"
    r"explain|describe|define|compare|summari[sz]e|translate|write)\b",
    re.IGNORECASE,
)
_LATER = re.compile(rf"\b(?:{_WORDS})\b", re.IGNORECASE)


def asking_part(text: str, can_read: Callable[[str], bool]) -> str:
    """The text itself where it can be read, else its questions and requests, the last ones where
    not all can be read; without any, its end. `can_read` is asked a few times."""
    if can_read(text):
        return text
    sentences = [each for each in _BETWEEN.split(text.strip()) if each] or [text]
    kept = ""
    for sentence in reversed(_asking(sentences)):
        longer = f"{sentence} {kept}".strip()
        if not can_read(longer):
            break
        kept = longer
    return kept or _end(_asking(sentences)[-1], can_read)


def _asking(sentences: Sequence[str]) -> list[str]:
    """Those that surely ask, else those that begin like it, else the last one."""
    # The last one needs no mark: people leave it out.
    *_, last = sentences
    return (
        [
            each
            for each in sentences
            if each.endswith(_MARKS)
            or _REQUEST.search(each)
            or (each is last and _BEGINS.match(each))
        ]
        or [each for each in sentences if _BEGINS.match(each)]
        or [last]
    )


def _end(sentence: str, can_read: Callable[[str], bool]) -> str:
    """The end of a sentence that is too long by itself, from its last question word if it can."""
    words = list(_LATER.finditer(sentence))
    end = sentence[words[-1].start() :] if words else sentence
    while len(end) > 1 and not can_read(end):
        half = end[len(end) // 2 :]
        end = half.partition(" ")[2] or half
    return end
