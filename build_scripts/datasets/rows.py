"""An example of an expert's further training (refresh.py, sums.py)."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def expert_row(
    domain: str,
    kind: str,
    question: str,
    answer: str,
    parents: list[dict[str, str]] | None = None,
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
