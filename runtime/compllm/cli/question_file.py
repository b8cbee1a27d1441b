"""Files of questions, one JSON object with a "question" a line, of any length: read line by line,
and an output beside them that a stopped run continues.

Bad lines are named by number before any work is done, except in standard input, which is read once.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TextIO

from compllm.cli.console import STDIN
from compllm.errors import ConfigError
from compllm.plan import is_encodable

_MAX_NAMED = 5  # bad lines that an error names
# Ends of a line to `str.splitlines` that JSON leaves as they are.
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}

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


def check_questions(path: Path, out: Path | None) -> int | None:
    """How many questions the file has; None for standard input. Raises ConfigError that names the
    bad lines, or that says that `out` (None: standard output) is the file itself."""
    _check_apart(path, out)
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
            yield Question(number, _parse(line))


def unanswered(
    path: Path, out: Path | None, keys: Sequence[str]
) -> tuple[Iterator[Question], int, Record | None]:
    """The questions that have no line in `out` (None: standard output) yet, the number of those
    that have one, and the last such line.

    keys: what the command adds to a line, in this order. A line that broke off is cut away. Raises
    ConfigError, with `out` left as it is, where the two do not belong together.
    """
    _check_apart(path, out)
    questions = read_questions(path)
    if out is None or not out.is_file():
        return questions, 0, None
    count, end, last, tail = 0, 0, None, b""
    with _opened(out) as file:
        for line in file:
            if not line.endswith(b"\n"):
                tail = line
                break
            there = _object(line)
            asked = next(questions, None)
            if asked is None or there is None or there.get("question") != asked.text:
                raise ConfigError(
                    f"{out} has {str((there or {}).get('question'))[:60]!r} in line {count + 1}, "
                    f"{repr(asked.text[:60]) if asked else 'nothing'} is asked there: it belongs "
                    "to other questions, name another file"
                )
            missing = [key for key in keys if key not in there]
            if missing:
                raise ConfigError(
                    f"{out} has no {missing[0]!r} in line {count + 1}: it is no output of this "
                    "command, name another file"
                )
            count, end, last = count + 1, end + len(line), there
    if tail and not count:  # nothing before it says that the file is ours
        first = next(questions, None)
        ours = _beginning(first.record, keys) if first else b""
        if not first or not (tail.startswith(ours) or ours.startswith(tail)):
            raise ConfigError(
                f"{out} holds {tail[:60]!r}, which is no line of this command's that broke off: "
                "name another file"
            )
        questions = chain([first], questions)
    if tail:
        with out.open("r+b") as file:
            file.truncate(end)
    return questions, count, last


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


def _check_apart(path: Path, out: Path | None) -> None:
    """What is written must not land in what is read. Of files alone: a terminal is both."""
    try:
        read, written = _status(path, sys.stdin), _status(out, sys.stdout)
    except OSError:  # not there, or not a file of the system's
        return
    if stat.S_ISREG(read.st_mode) and os.path.samestat(read, written):
        raise ConfigError(
            f"{'standard output' if out is None else out} is the file of questions itself: "
            "name another file"
        )


def _status(path: Path | None, stream: TextIO) -> os.stat_result:
    return os.fstat(stream.fileno()) if path is None or path == STDIN else path.stat()


def _beginning(record: Record, keys: Sequence[str]) -> bytes:
    """Of the line that is written for it, up to the first value of the command's own."""
    first = next((key for key in record if key in keys), keys[0])
    before = dict(takewhile(lambda item: item[0] != first, record.items()))
    return _line({**before, first: 0}).removesuffix(b"0}\n")


def _write(file: BinaryIO, records: Sequence[Record]) -> None:
    file.write(b"".join(map(_line, records)))
    file.flush()


def _line(record: Record) -> bytes:
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return text.translate(_LINE_ENDS).encode() + b"\n"


def _problem(line: bytes) -> str | None:
    """What is wrong with a line, as the rest of a sentence."""
    try:
        value = _parse(line)
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
        value = _parse(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _parse(line: bytes) -> Any:
    """Raises ValueError, also for numbers that Python takes and could not write as JSON."""
    return json.loads(line, parse_constant=_refuse_constant, parse_float=_finite)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number there")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is more than a float holds")
    return number


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
