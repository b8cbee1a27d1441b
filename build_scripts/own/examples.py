"""An expert's example questions: out of a file, or made of a description of its domain.

A file is text (one question a line; empty lines and those that begin with `#` do not count), JSON
lines or CSV with a key or column `question`. Two questions are the same where they differ in case,
blanks and closing signs alone: the same question cannot belong to two experts.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compllm.build_scripts.json_lines import read_json_lines, read_text
from compllm.catalogue import Catalogue
from compllm.errors import ConfigError

MIN_EXAMPLES = 5  # of an expert: the router learns nothing from fewer
MAX_CHARS = 1000
_PHRASES = re.compile(r"[,;.\n]|\band\b")
_ABOUT = ("{}", "What is {}?", "Explain {}.", "A question about {}")


def read_examples(path: Path) -> tuple[str, ...]:
    """The questions of a file, each once. Raises ConfigError that names the line."""
    found: dict[str, str] = {}
    for number, record in read_records(path):
        question = text_of(record, "question", f"{path}: line {number}")
        found.setdefault(key_of(question), question)
    if len(found) < MIN_EXAMPLES:
        raise ConfigError(
            f"{path} has {len(found)} questions: give at least {MIN_EXAMPLES}, one a line; 20 make "
            "a better router"
        )
    return tuple(found.values())


def described(text: str) -> tuple[str, ...]:
    """Questions about each phrase of a description. Raises ConfigError for one without words."""
    phrases = [part.strip() for part in _PHRASES.split(text) if part.strip()]
    made = [form.format(phrase) for phrase in phrases for form in _ABOUT]
    if len(made) < MIN_EXAMPLES:
        raise ConfigError(
            f"the description {text!r} has {len(phrases)} parts: name two at least, with commas "
            "between them, or give questions with --examples FILE"
        )
    return tuple(dict.fromkeys(made))


def check_contradictions(catalogue: Catalogue, examples: Sequence[str]) -> None:
    """Raises ConfigError where another expert, or none, has one of these questions."""
    owners = {key_of(text): "no expert (out_of_domain)" for text in catalogue.out_of_domain}
    for expert, texts in zip(catalogue.experts, catalogue.examples, strict=True):
        owners |= {key_of(text): f"expert {expert.name}" for text in texts}
    for text in examples:
        if owner := owners.get(key_of(text)):
            raise ConfigError(
                f"the question {text!r} belongs to {owner} in {catalogue.path}: remove it there, "
                "or from the new examples"
            )


def key_of(text: str) -> str:
    """Equal for two spellings of the same question."""
    return " ".join(text.casefold().split()).rstrip(" ?.!:;,")


def read_records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and record: of JSON lines (.jsonl), CSV with a header (.csv) or text, whose lines
    are questions. Raises ConfigError that names the line."""
    if path.suffix.lower() == ".jsonl":
        yield from read_json_lines(path)
    elif path.suffix.lower() == ".csv":
        yield from _csv_rows(path, read_text(path))
    else:
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                yield number, {"question": line}


def text_of(record: dict[str, Any], key: str, where: str) -> str:
    """A text of a record, its blanks joined. Raises ConfigError."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}: {key} is {value!r}: expected a text")
    if len(value) > MAX_CHARS:
        raise ConfigError(f"{where}: {key} has {len(value)} characters: at most {MAX_CHARS}")
    return " ".join(value.split())


def _csv_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    rows = csv.reader(text.splitlines(keepends=True), strict=True)
    try:
        header = [name.strip().lower() for name in next(rows, [])]
        if "question" not in header:
            raise ConfigError(
                f"{path}: line 1 has no column 'question' (it has {', '.join(header) or 'none'})"
            )
        for row in rows:
            if not row:
                continue
            if len(row) != len(header):
                raise ConfigError(
                    f"{path}: line {rows.line_num} has {len(row)} columns, the header "
                    f"{len(header)}: put a text that holds a comma in quotes"
                )
            yield rows.line_num, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise ConfigError(f"{path}: line {rows.line_num} is not CSV: {error}") from error
