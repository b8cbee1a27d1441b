"""An example of an expert's further training: what refresh.py and the modules that it calls make.

A question may name lines of a plan as `#k`. Their responses stand in the prompt (prompts.py); the
router reads the question with `#k`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Parents = list[dict[str, str]]  # question and response of each line that a question names; rising
MAX_LINE = 5  # the highest `#k`


def expert_row(
    domain: str,
    kind: str,
    question: str,
    answer: str,
    parents: Parents | None = None,
) -> Row:
    """parents: questions and responses of the lines that the question names as `#k`."""
    return {
        "domain": domain,
        "kind": kind,
        "wording": f"{kind}/more",
        "question": question,
        "parents": parents or [],
        "answer": answer,
    }


def referred(
    rng: random.Random, operands: Sequence[str], questions: Mapping[int, str]
) -> tuple[tuple[str, ...], Parents]:
    """The operands with a line in place of each that has a question, and what those lines said.

    The lines are drawn in any order: "Subtract #3 from #1.".
    """
    lines = dict(zip(questions, rng.sample(range(1, MAX_LINE + 1), len(questions)), strict=True))
    asked = (f"#{lines[place]}" if place in lines else each for place, each in enumerate(operands))
    order = sorted(questions, key=lines.__getitem__)
    said = [{"question": questions[place], "response": operands[place]} for place in order]
    return tuple(asked), said
