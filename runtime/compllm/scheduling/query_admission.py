"""Query admission: how many queries run at once, and which are refused because they would be late.

The first step of the path. Past a certain number, more queries at once answer no sooner: each only
waits longer, until under overload every one of them misses its deadline. So a bounded number runs,
the others wait in their order of arrival, and a query is refused at once where its turn would come
too late. Its client
can then go elsewhere, or ask again.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from compllm.errors import BackendUnavailable, ConfigError

_WEIGHT = 0.1  # of the newest query in the mean of the times that queries take


@dataclass(frozen=True, slots=True)
class QueryLoad:
    """The queries now, and those refused since the start."""

    limit: int
    num_running: int
    num_waiting: int
    num_refused: int


@dataclass(slots=True, eq=False)
class _Waiting:
    query_id: str
    since_s: float
    end_s: float  # the query's deadline, on the clock
    turn: asyncio.Future[None]


class QueryAdmission:
    """Shared by all queries of one event loop.

    limit: queries that run at once. max_wait_s: a query whose turn would come later is refused;
    infinite: only its own deadline counts. clock: seconds; None is the event loop's.
    """

    def __init__(
        self,
        limit: int,
        max_wait_s: float = math.inf,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if limit < 1 or not max_wait_s > 0:
            raise ConfigError(
                f"limit is {limit} and max_wait_s {max_wait_s:g}: at least one query must run, and "
                "wait"
            )
        self._limit = limit
        self._max_wait_s = max_wait_s
        self._clock = clock
        self._waiting: deque[_Waiting] = deque()
        self._num_running = 0
        self._num_refused = 0
        self._mean_s: float | None = None  # that a query takes; None: none has ended

    def load(self) -> QueryLoad:
        """For the metrics."""
        return QueryLoad(self._limit, self._num_running, len(self._waiting), self._num_refused)

    @asynccontextmanager
    async def place(self, query_id: str, end_s: float) -> AsyncGenerator[None, None]:
        """Wait for the query's turn; inside, it is one of those that run.

        end_s: its deadline, in seconds on the clock. Raises BackendUnavailable where it would end
        too late, at once or, when others took longer than was foreseen, when its turn comes.
        """
        if self._num_running < self._limit and not self._waiting:
            self._num_running += 1
        else:
            await self._turn(query_id, end_s)
        start_s = self._now()
        try:
            yield
        finally:
            took_s = self._now() - start_s
            mean_s = took_s if self._mean_s is None else self._mean_s
            self._mean_s = mean_s + _WEIGHT * (took_s - mean_s)
            self._num_running -= 1
            self._pass_on()

    def _now(self) -> float:
        return self._clock() if self._clock else asyncio.get_running_loop().time()

    async def _turn(self, query_id: str, end_s: float) -> None:
        now = self._now()
        if error := self._too_late(query_id, now, end_s):
            raise error
        turn = asyncio.get_running_loop().create_future()
        waiting = _Waiting(query_id, now, end_s, turn)
        self._waiting.append(waiting)
        try:
            await turn
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif not turn.cancelled() and turn.exception() is None:
                # Its turn came and it was cancelled at once: the place is passed on.
                self._num_running -= 1
                self._pass_on()
            raise

    def _too_late(self, query_id: str, now: float, end_s: float) -> BackendUnavailable | None:
        """The refusal of a query that arrives now; None where it may wait."""
        mean_s = self._mean_s or 0.0
        wait_s = mean_s * (len(self._waiting) + 1) / self._limit
        if wait_s > self._max_wait_s:
            why = f"no query waits longer than {self._max_wait_s:g} s here"
        elif now + wait_s + mean_s > end_s:
            why = f"its deadline of {end_s - now:.3g} s would be over"
        else:
            return None
        turn = f"{len(self._waiting)} queries wait, its turn is in about {wait_s:.3g} s"
        return self._refusal(query_id, f"{turn}: {why}")

    def _refusal(self, query_id: str, why: str) -> BackendUnavailable:
        self._num_refused += 1
        again_s = max(1, math.ceil(self._mean_s or 1.0))
        text = f"overloaded: {why}. Ask again in {again_s} s"
        return BackendUnavailable(text, query_id=query_id)

    def _pass_on(self) -> None:
        """The free places go to those that wait longest and can still end in time."""
        now = self._now()
        while self._waiting and self._num_running < self._limit:
            waiting = self._waiting.popleft()
            if waiting.turn.done():  # cancelled, and its task has not run since
                continue
            waited_s = now - waiting.since_s
            if waited_s > 2 * self._max_wait_s:
                why = f"it waited {waited_s:.3g} s, twice as long as any may"
            elif now + (self._mean_s or 0.0) > waiting.end_s:
                why = f"it waited {waited_s:.3g} s, and would end after its deadline"
            else:
                why = ""
            if why:
                waiting.turn.set_exception(self._refusal(waiting.query_id, why))
            else:
                self._num_running += 1
                waiting.turn.set_result(None)
