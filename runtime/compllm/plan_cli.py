"""`compllm plan --questions`: plans for a file of questions of any length, many at a time.

JSON lines in, each with a "question"; the same lines out, in the same order, each with "steps",
"parents" (counted from 0) and "is_fallback". A line is written the moment it and those before it
are planned, and a run that is stopped goes on behind the last line of its output.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from compllm.console import STDIN
from compllm.errors import ConfigError, ServerError
from compllm.plan import is_encodable

if TYPE_CHECKING:
    from collections.abc import Callable

    from compllm.config import Config
    from compllm.pipeline import CompLLM

_MAX_NAMED = 5  # bad lines that an error names
_PATIENCE_S = 3600.0  # of a plan: in a batch its wait is the batch's own doing
_PROBE_S = 5.0


@dataclass(frozen=True, slots=True)
class Question:
    """One line of the file."""

    number: int  # of the line, from 1
    value: dict[str, Any]

    @property
    def text(self) -> str:
        text: str = self.value["question"]
        return text


def patient(settings: Config) -> Config:
    """The settings with time-outs for a plan that shares the engine with many others."""
    timeouts = settings.timeouts
    return replace(
        settings,
        timeouts=replace(
            timeouts,
            plan_s=max(timeouts.plan_s, _PATIENCE_S),
            query_s=max(timeouts.query_s, _PATIENCE_S),
        ),
    )


def check_questions(path: Path, max_chars: int) -> int | None:
    """How many questions the file has; None for standard input, which is read only once.

    Raises ConfigError that names the bad lines, before anything is planned.
    """
    if path == STDIN:
        return None
    count, bad = 0, []
    with _open(path) as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            count += 1
            problem = _problem(line, max_chars)
            if problem:
                bad.append(f"line {number} {problem}")
    if bad:
        more = f" (and {len(bad) - _MAX_NAMED} more)" if len(bad) > _MAX_NAMED else ""
        raise ConfigError(f"{path}: {'; '.join(bad[:_MAX_NAMED])}{more}")
    return count


async def plan_questions(
    llm: CompLLM, questions: Path, out: Path | None, concurrency: int, total: int | None = None
) -> int:
    """Plan every question that `out` (None: standard output) has no line for yet; returns how many
    these were. total: for the progress bar.

    Raises ConfigError for a bad line or an output that belongs to other questions, and ServerError
    when the server goes away; what was planned before is written then.
    """
    num_there = 0 if out is None else _complete_lines(out)
    limit = llm.config.limits.max_query_chars
    num_planned = 0
    with _output(out) as handle, _progress(total) as advance:
        pending: deque[asyncio.Task[dict[str, Any]]] = deque()

        async def write_first() -> None:
            record = await pending[0]
            pending.popleft()
            handle.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
            handle.flush()
            advance(1)

        earlier = _lines_of(out, num_there)
        try:
            async with aclosing(_questions(questions, limit)) as lines:
                async for question in lines:
                    if num_there:
                        num_there -= 1
                        _check_same(question, next(earlier), out)
                        advance(1)
                        continue
                    while len(pending) >= concurrency:
                        await write_first()
                    pending.append(asyncio.create_task(_plan(llm, question)))
                    num_planned += 1
            if num_there:
                raise ConfigError(
                    f"{out} has {num_there} lines more than {questions}: it belongs to other "
                    "questions, name another file"
                )
            while pending:
                await write_first()
        except ConfigError:
            while pending:  # of lines before the bad one: what was begun is not thrown away
                await write_first()
            raise
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
    return num_planned


async def _plan(llm: CompLLM, question: Question) -> dict[str, Any]:
    from compllm.types import Query

    plan, _ = await llm.plan(Query(question.text))
    if plan.is_fallback and await _is_gone(llm.config.server.url):
        raise ServerError(
            f"the server went away at line {question.number} ({plan.reason}): start it again, the "
            "same command goes on from there"
        )
    return {
        **question.value,
        "steps": [sub_query.text for sub_query in plan.sub_queries],
        "parents": [[parent - 1 for parent in s.parents] for s in plan.sub_queries],
        "is_fallback": plan.is_fallback,
    }


async def _is_gone(url: str) -> bool:
    """Whether nobody listens there. A generator that fails is a fall-back plan; a server that ended
    must not turn the rest of the file into them."""
    host, _, port = url.rpartition(":")
    if not host:
        return False
    try:
        async with asyncio.timeout(_PROBE_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError):
        return True
    writer.close()
    return False


async def _questions(path: Path, max_chars: int) -> AsyncGenerator[Question, None]:
    """The lines of the file, read as they are needed. Raises ConfigError that names a bad one."""
    with _open(path) as handle:
        number = 0
        # In a thread: standard input may keep us waiting while plans are under way.
        while line := await asyncio.to_thread(handle.readline):
            number += 1
            if not line.strip():
                continue
            problem = _problem(line, max_chars)
            if problem:
                raise ConfigError(f"{path}: line {number} {problem}")
            yield Question(number, json.loads(line))


def _problem(line: bytes, max_chars: int) -> str | None:
    """What is wrong with a line, as the rest of a sentence."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error})"
    question = value.get("question") if isinstance(value, dict) else None
    if not isinstance(question, str) or not question.strip():
        return 'has no question: expected {"question": "..."}'
    if len(question.strip()) > max_chars:
        return f"has {len(question.strip())} characters, at most {max_chars} are allowed"
    if not is_encodable(json.dumps(value, ensure_ascii=False)):
        return "is not text: it holds half a surrogate pair"
    return None


def _complete_lines(out: Path) -> int:
    """Lines that an earlier run wrote; one that broke off is cut away."""
    if not out.is_file():
        return 0
    count, end = 0, 0
    with _open(out) as handle:
        for line in handle:
            if line.endswith(b"\n"):
                count, end = count + 1, end + len(line)
    if end < out.stat().st_size:
        with out.open("r+b") as handle:
            handle.truncate(end)
    return count


def _lines_of(out: Path | None, count: int) -> Iterator[dict[str, Any]]:
    if out is None or not count:
        return
    with _open(out) as handle:
        for number, line in enumerate(handle, start=1):
            if number > count:
                return
            try:
                value = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{out}: line {number} is not JSON ({error})") from error
            yield value if isinstance(value, dict) else {}


def _check_same(question: Question, there: dict[str, Any], out: Path | None) -> None:
    if there.get("question") != question.text:
        raise ConfigError(
            f"{out} has the plan of {str(there.get('question'))[:60]!r} where line "
            f"{question.number} asks {question.text[:60]!r}: it belongs to other questions, name "
            "another file"
        )


@contextmanager
def _output(out: Path | None) -> Iterator[BinaryIO]:
    if out is None:
        yield sys.stdout.buffer
        return
    try:
        handle = out.open("ab")
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error
    with handle:
        yield handle


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        handle = path.open("rb")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    with handle:
        yield handle


@contextmanager
def _progress(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
