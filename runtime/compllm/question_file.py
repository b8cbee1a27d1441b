"""Files of questions, one JSON object with a "question" a line, of any length: read line by line,
and an output beside them that a stopped run goes on with.

Bad lines are named by number before any work is done, except in standard input, which is read once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from compllm.console import STDIN
from compllm.errors import ConfigError
from compllm.plan import is_encodable

_MAX_NAMED = 5  # bad lines that an error names

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Question:
    """One line of the file."""

    number: int  # of the line, from 1
    record: Record  # everything that stood there

    @property
    def text(self) -> str:
        text: str = self.record["question"]
        return text


def check_questions(path: Path) -> int | None:
    """How many questions the file has; None for standard input. Raises ConfigError that names the
    bad lines."""
    if path == STDIN:
        return None
    count, bad = 0, []
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                count += 1
                problem = _problem(line)
                if problem:
                    bad.append(f"line {number} {problem}")
    if bad:
        more = f" (and {len(bad) - _MAX_NAMED} more)" if len(bad) > _MAX_NAMED else ""
        raise ConfigError(f"{path}: {'; '.join(bad[:_MAX_NAMED])}{more}")
    return count


def read_questions(path: Path) -> Iterator[Question]:
    """The lines that are not blank. Raises ConfigError that names a bad one."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            problem = _problem(line)
            if problem:
                raise ConfigError(f"{path}: line {number} {problem}")
            yield Question(number, json.loads(line))


def skip_answered(questions: Iterator[Question], out: Path) -> tuple[int, Record | None]:
    """Move on past the questions whose lines stand in `out` already; their number and the last
    line. A line that broke off is cut away. Raises ConfigError where they do not belong together.
    """
    if not out.is_file():
        return 0, None
    count, end, last = 0, 0, None
    with _opened(out) as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            there = _object(line)
            asked = next(questions, None)
            if asked is None or there is None or there.get("question") != asked.text:
                raise ConfigError(
                    f"{out} has {str((there or {}).get('question'))[:60]!r} in line {count + 1}, "
                    f"{repr(asked.text[:60]) if asked else 'nothing'} is asked there: it belongs "
                    "to other questions, name another file"
                )
            count, end, last = count + 1, end + len(line), there
    if end < out.stat().st_size:
        with out.open("r+b") as file:
            file.truncate(end)
    return count, last


@contextmanager
def appended(out: Path | None) -> Iterator[Callable[[Sequence[Record]], None]]:
    """Yields a function that writes lines, whole and at once; None is standard output."""
    if out is None:
        yield lambda records: _write(sys.stdout.buffer, records)
        return
    try:
        file = out.open("ab")
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error
    with file:

        def write(records: Sequence[Record]) -> None:
            try:
                _write(file, records)
            except OSError as error:
                raise ConfigError(f"cannot write {out}: {error.strerror}") from error

        yield write


def batches(questions: Iterator[Question], size: int) -> Iterator[list[Question]]:
    """Up to `size` at a time, in order. Those before a bad line come before its error."""
    batch: list[Question] = []
    while True:
        try:
            batch.append(next(questions))
        except StopIteration:
            break
        except ConfigError:
            if batch:
                yield batch
            raise
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _write(file: BinaryIO, records: Sequence[Record]) -> None:
    lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    file.write("".join(lines).encode())
    file.flush()


def _problem(line: bytes) -> str | None:
    """What is wrong with a line, as the rest of a sentence."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error})"
    question = value.get("question") if isinstance(value, dict) else None
    if not isinstance(question, str) or not question.strip():
        return 'has no question: expected {"question": "..."}'
    if not is_encodable(json.dumps(value, ensure_ascii=False)):
        return "is not text: it holds half a surrogate pair"
    return None


def _object(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    with file:
        yield file
