"""Questions with the answers that count as right, from three kinds of JSON Lines files.

`question` and `accept` (for each part a list of alternatives); a composite of make_datasets.py
(`question`, `answers`, `parents`), whose parts are the leaves; an expert's example (`question`,
`answer`, no parents).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compllm.errors import ConfigError

Parts = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Known:
    """A question, and for each of its parts the responses that are right."""

    text: str
    parts: Parts
    kind: str


def read_known(path: Path) -> tuple[Known, ...]:
    """Every question of the file that stands alone. Raises ConfigError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read questions from {path}: {error}") from error
    return tuple(_known(path, lines))


def _known(path: Path, lines: list[str]) -> Iterator[Known]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            parts = _parts(record)
            if parts:
                kind = record.get("kind") or record.get("set") or "all"
                yield Known(record["question"], parts, str(kind))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}: line {number} is no question with answers ({error!r}): expected "
                "'question' with 'accept', with 'answers' and 'parents', or with 'answer'"
            ) from error


def _parts(record: dict[str, Any]) -> Parts:
    """Empty where the question needs parents' responses that it does not have."""
    if "accept" in record:
        return tuple(tuple(each) for each in record["accept"])
    if "answers" in record:
        above = {parent for parents in record["parents"] for parent in parents}
        answers = enumerate(record["answers"])
        return tuple((answer,) for index, answer in answers if index not in above)
    return () if record.get("parents") else ((record["answer"],),)


def is_right(response: str, accepted: tuple[str, ...]) -> bool:
    """Whether an accepted answer stands in the response, as whole words or a whole number; case
    does not count."""
    return any(
        re.search(rf"(?<![\w.+-]){re.escape(each)}(?![\w+-])(?!\.\d)", response, re.IGNORECASE)
        for each in accepted
    )
