"""Questions with accepted answers: reading a file of them, and grading an answer.

A line is one JSON object: `id`, `kind`, `question`, `answer` (for people) and `accept`, which holds
for every part of the question the alternatives that make that part right.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.metrics import words
from compllm.errors import ConfigError

_FIELDS = {"id": str, "kind": str, "question": str, "answer": str, "accept": list}
_APOSTROPHE = str.maketrans("\u2019", "'")
_ADMISSION = re.compile(r"\bi (?:do not|don't) know\b")


@dataclass(frozen=True, slots=True)
class Question:
    """One line of a file."""

    id: str
    kind: str
    question: str
    answer: str  # for people
    accept: tuple[tuple[str, ...], ...]  # alternatives of each part


def read_questions(path: Path) -> tuple[Question, ...]:
    """In the order of the file. Raises ConfigError, which names the line, for a bad record, an id
    that stands twice and a file without questions."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    numbered = [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]
    found = tuple(_question(line, f"{path}, line {number}") for number, line in numbered)
    if not found:
        raise ConfigError(f"{path} holds no question: expected one JSON object a line")
    name, count = Counter(question.id for question in found).most_common(1)[0]
    if count > 1:
        raise ConfigError(f"{path}: the id {name!r} stands {count} times; every id must be unique")
    return found


def _question(line: str, where: str) -> Question:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{where}: {line[:60]!r} is not a JSON object")
    for name, kind in _FIELDS.items():
        if not isinstance(record.get(name), kind):
            raise ConfigError(
                f"{where}: {name!r} is {record.get(name)!r}, expected a {kind.__name__}"
            )
    accept = record["accept"]
    if not accept or not all(_is_part(part) for part in accept):
        raise ConfigError(
            f"{where}: 'accept' is {accept!r}, expected a list of alternatives for each part"
        )
    parts = tuple(tuple(part) for part in accept)
    return Question(record["id"], record["kind"], record["question"], record["answer"], parts)


def _is_part(part: object) -> bool:
    """Alternatives of one part: text that normalisation leaves something of."""
    return (
        isinstance(part, list)
        and bool(part)
        and all(isinstance(text, str) and words(text) for text in part)
    )


def is_right(answer: str, question: Question) -> bool:
    """For every part at least one alternative stands in the answer as a whole word or number.

    A simple rule: the order of the parts does not matter, one word may serve two parts, and an
    answer that lists contradicting alternatives is still right. Both texts are normalised as
    `metrics.words` does. A hyphen joins words ("metal" is not in "non-metal"). A digit, a sign and
    a decimal point belong to a number. "I do not know" counts for no part.
    """
    text = f" {_ADMISSION.sub('', _normal(answer))} "
    return all(any(_stands_in(one, text) for one in part) for part in question.accept)


def is_unknown(answer: str) -> bool:
    """The answer says "I do not know", in one part at least."""
    return bool(_ADMISSION.search(_normal(answer)))


def _normal(text: str) -> str:
    return " ".join(words(text.translate(_APOSTROPHE)))


def _stands_in(alternative: str, text: str) -> bool:
    wanted = re.escape(_normal(alternative))
    if alternative.isdecimal():
        pattern = rf"(?<!\d)(?<!\d\.)(?<! -){wanted}(?!\d)(?!\.\d)"
    else:
        pattern = rf"(?<!\w)(?<!\w-){wanted}(?!\w)(?!-\w)"
    return bool(re.search(pattern, text))
