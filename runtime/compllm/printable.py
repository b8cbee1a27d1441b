"""Text that a terminal shows and does not act on."""

from __future__ import annotations

import re

# A terminal acts on these; a model's or a user's text must not reach it with them.
_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f]")


def printable(text: str) -> str:
    """The text without control characters other than newline and tab."""
    return _CONTROL.sub("", text)
