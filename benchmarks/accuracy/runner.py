"""Records through a contestant, many in flight, each outcome stored the moment it is there.

The engine batches whatever is in flight, so that the number of records at a time sets the
throughput and nothing else: every answer is what it would be alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from benchmarks.store import ResultStore, content_hash

Outcome = dict[str, Any]  # what a contestant made of a record, as JSON


class Record(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Work:
    """How a run is done."""

    concurrency: int = 32
    is_quiet: bool = False  # no progress bar


async def run_records(
    title: str,
    records: Sequence[R],
    answer: Callable[[R], Awaitable[Outcome]],
    store: ResultStore,
    work: Work,
) -> list[Outcome]:
    """An outcome for each record, in their order. What the store has is not run again."""
    hashes = {record.id: content_hash(record) for record in records}
    if len(hashes) < len(records):
        raise ValueError(f"{title}: two records have the same id")
    missing = [record for record in records if store.get(record.id, hashes[record.id]) is None]
    with closing(store), _progress(title, len(records), is_quiet=work.is_quiet) as advance:
        advance(len(records) - len(missing))
        pending: Iterator[R] = iter(missing)

        async def worker() -> None:
            for record in pending:
                store.put(record.id, hashes[record.id], await answer(record))
                advance(1)

        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(min(work.concurrency, len(missing))):
                    tasks.create_task(worker())
        except BaseExceptionGroup as group:
            raise _first(group) from None
        found = [store.get(record.id, hashes[record.id]) for record in records]
    assert all(outcome is not None for outcome in found)
    return [outcome for outcome in found if outcome is not None]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


@contextmanager
def _progress(title: str, total: int, *, is_quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while the block runs; inside, a function that moves it on."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=is_quiet) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)
