"""`compllm plan --questions`: plans for a file of questions of any length, many at a time.

JSON lines in, each with a "question"; the same lines out, in the same order, each with "steps",
"parents" (counted from 0) and "is_fallback"; a question that cannot be planned, a too long one for
instance, has itself as its one step and the reason as "error". A line is written the moment it and
those before it are planned, and a run that is stopped goes on behind the last line of its output.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from compllm.cli.question_file import Question, Record, appended, unanswered
from compllm.errors import ConfigError, QueryError, ServerError

if TYPE_CHECKING:
    from compllm.config import Config
    from compllm.pipeline import CompLLM

_KEYS = ("steps", "parents", "is_fallback")  # a line's own, in this order
_PATIENCE_S = 3600.0  # of a plan: in a batch its wait is the batch's own doing
_PROBE_S = 5.0


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


async def plan_questions(
    llm: CompLLM, questions: Path, out: Path | None, concurrency: int, total: int | None = None
) -> tuple[int, int]:
    """Plan every question that `out` (None: standard output) has no line for yet; returns how many
    these were, and how many of them fell back. total: for the progress bar.

    Raises ConfigError for a bad line or an output that belongs to other questions, and ServerError
    when the server goes away; what was planned before is written then.
    """
    lines, num_there, _ = unanswered(questions, out, _KEYS)
    num_planned = num_fallbacks = 0
    pending: deque[asyncio.Task[Record]] = deque()
    with appended(out) as write, _progress(total) as advance:
        advance(num_there)

        async def write_first() -> None:
            nonlocal num_fallbacks
            record = await pending[0]
            pending.popleft()
            write([record])
            num_fallbacks += record["is_fallback"]
            advance(1)

        try:
            # In a thread: standard input may keep us waiting while plans are under way.
            while (question := await asyncio.to_thread(next, lines, None)) is not None:
                while len(pending) >= concurrency:
                    await write_first()
                pending.append(asyncio.create_task(_plan(llm, question)))
                num_planned += 1
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
    return num_planned, num_fallbacks


async def _plan(llm: CompLLM, question: Question) -> Record:
    from compllm.types import Query

    try:
        plan, _ = await llm.plan(Query(question.text))
    except QueryError as error:  # too long, for instance: the others can be planned still
        alone = {"steps": [question.text], "parents": [[]], "is_fallback": True}
        return {**question.record, **alone, "error": str(error)}
    if plan.is_fallback and await _is_gone(llm.config.server.url):
        raise ServerError(
            f"the server went away at line {question.number} ({plan.reason}): start it again, the "
            "same command goes on from there"
        )
    return {
        **question.record,
        "steps": [sub_query.text for sub_query in plan.sub_queries],
        "parents": [[parent - 1 for parent in s.parents] for s in plan.sub_queries],
        "is_fallback": plan.is_fallback,
        **({"is_cut": True} if plan.is_cut else {}),
    }


async def _is_gone(url: str) -> bool:
    """Whether no server listens there. A generator that fails is a fall-back plan; a server that
    ended must not turn the rest of the file into them."""
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
