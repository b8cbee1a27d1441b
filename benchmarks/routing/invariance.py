"""A paraphrased question must go to the same expert: how often does it not?"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

_PUNCTUATION = re.compile(r"[.,;:!?'\"()]")

PARAPHRASES: Mapping[str, Callable[[str], str]] = {
    "upper case": str.upper,
    "lower case": str.lower,
    "no closing mark": lambda text: text.rstrip(" ?.!"),
    "more closing marks": lambda text: text + " ??",
    "blanks around": lambda text: f"  {text} ",
    "wide white space": lambda text: re.sub(r" ", " \t\n", text),
    "no punctuation": lambda text: " ".join(_PUNCTUATION.sub(" ", text).split()),
    "no commas": lambda text: text.replace(",", ""),
    "all of them": lambda text: " ".join(_PUNCTUATION.sub(" ", text.upper()).split()) + " !",
}
