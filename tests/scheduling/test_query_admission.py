"""Query admission: the order of turns, early refusals, and places that are never lost."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compllm.errors import BackendUnavailable, ConfigError
from compllm.scheduling.query_admission import QueryAdmission

ENDLESS = math.inf


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Query:
    """A query that holds its place until `end`."""

    def __init__(self, admission: QueryAdmission, name: str, end_s: float = ENDLESS) -> None:
        self.has_run = False
        self.over = asyncio.Event()
        self.task = asyncio.create_task(self._run(admission, name, end_s))

    async def _run(self, admission: QueryAdmission, name: str, end_s: float) -> None:
        async with admission.place(name, end_s):
            self.has_run = True
            await self.over.wait()

    async def end(self) -> None:
        self.over.set()
        await settle()


async def started(admission: QueryAdmission, count: int, end_s: float = ENDLESS) -> list[Query]:
    queries = [Query(admission, f"query {number}", end_s) for number in range(count)]
    await settle()
    return queries


async def finish(*queries: Query) -> None:
    for query in queries:
        query.task.cancel()
    await asyncio.gather(*(query.task for query in queries), return_exceptions=True)


async def test_queries_beyond_the_limit_wait_in_their_order_of_arrival() -> None:
    admission = QueryAdmission(2)
    queries = await started(admission, 4)
    assert [query.has_run for query in queries] == [True, True, False, False]
    assert admission.load().num_waiting == 2
    await queries[1].end()
    assert [query.has_run for query in queries] == [True, True, True, False]
    await finish(*queries)
    assert admission.load().num_running == admission.load().num_waiting == 0


async def busy(clock: Clock, limit: int, max_wait_s: float = ENDLESS) -> QueryAdmission:
    """An admission whose queries have taken 10 s each."""
    admission = QueryAdmission(limit, max_wait_s, clock)
    (query,) = await started(admission, 1)
    clock.now += 10.0
    await query.end()
    return admission


async def test_a_query_that_would_end_after_its_deadline_is_refused_at_once() -> None:
    clock = Clock()
    admission = await busy(clock, 2)
    queries = await started(admission, 4)
    # Three ahead of its turn, two at a time, 10 s each: its turn is in 15 s, and its end in 25 s.
    (late,) = await started(admission, 1, clock.now + 24.0)
    with pytest.raises(BackendUnavailable, match=r"^overloaded: 2 queries wait.*Ask again in 10 s"):
        await late.task
    (timely,) = await started(admission, 1, clock.now + 26.0)
    assert admission.load().num_waiting == 3
    assert admission.load().num_refused == 1
    await finish(*queries, timely)


async def test_a_query_that_would_wait_longer_than_allowed_is_refused_at_once() -> None:
    clock = Clock()
    admission = await busy(clock, 2, max_wait_s=12.0)
    queries = await started(admission, 4)
    (late,) = await started(admission, 1)
    with pytest.raises(BackendUnavailable, match="no query waits longer than 12 s here"):
        await late.task
    await finish(*queries)


async def test_a_query_that_can_no_longer_end_in_time_is_shed_when_its_turn_comes() -> None:
    clock = Clock()
    admission = await busy(clock, 1)
    first, second, third = await started(admission, 3, clock.now + 100.0)
    clock.now += 95.0
    (fourth,) = await started(admission, 1, clock.now + 1000.0)
    await first.end()
    for query in (second, third):
        with pytest.raises(BackendUnavailable, match="would end after its deadline"):
            await query.task
    assert fourth.has_run
    await finish(fourth)


async def test_a_query_whose_task_ends_while_it_waits_takes_no_place() -> None:
    admission = QueryAdmission(1)
    first, second, third = await started(admission, 3)
    second.task.cancel()
    await first.end()
    await settle()
    assert third.has_run
    await finish(second, third)
    assert admission.load().num_running == 0


async def test_a_query_cancelled_when_its_turn_comes_passes_its_place_on() -> None:
    admission = QueryAdmission(1)
    first, second, third = await started(admission, 3)
    first.task.cancel()
    await asyncio.sleep(0)  # the turn of the second is set, its task has not run
    second.task.cancel()
    await settle()
    assert third.has_run
    await finish(first, second, third)
    assert admission.load().num_running == 0


@pytest.mark.parametrize(("limit", "max_wait_s"), [(0, 1.0), (1, 0.0), (1, math.nan)])
def test_a_limit_that_lets_nothing_through_is_refused(limit: int, max_wait_s: float) -> None:
    with pytest.raises(ConfigError, match="at least one query must run"):
        QueryAdmission(limit, max_wait_s)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), limit=st.integers(1, 4))
def test_no_place_is_lost_whatever_ends_or_is_cancelled(seed: int, limit: int) -> None:
    async def run() -> None:
        rng, admission = random.Random(seed), QueryAdmission(limit)
        live: list[Query] = []
        ways: list[Callable[[Query], object]] = [
            lambda query: query.task.cancel(),
            lambda query: query.over.set(),
        ]
        for number in range(40):
            if rng.random() < 0.6 or not live:
                live.append(Query(admission, str(number)))
            else:
                rng.choice(ways)(live.pop(rng.randrange(len(live))))
            if rng.random() < 0.5:
                await asyncio.sleep(0)
            assert admission.load().num_running <= limit
        for query in live:
            query.over.set()
        await settle()
        everything = [each for each in asyncio.all_tasks() if each is not asyncio.current_task()]
        await asyncio.gather(*everything, return_exceptions=True)
        assert admission.load().num_running == admission.load().num_waiting == 0

    asyncio.run(run())
