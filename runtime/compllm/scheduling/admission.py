"""Admission: which request of all live queries an engine takes next. From the path to a Backend.

An engine takes a limited number of requests at a time and knows no priority. The rest wait here, in
the order of the C++ queue. The request that the queue releases is woken through its future; nothing
polls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, NamedTuple

from compllm import _core
from compllm.errors import BackendUnavailable, ConfigError

# oldest_query_first: inside a query the longest remaining path first; never starves.
# The others are there to be compared with it; deepest_first and least_remaining_work can starve.
PolicyName = Literal["oldest_query_first", "fifo", "deepest_first", "least_remaining_work"]

MAX_WAITING = 10_000  # where the caller names no limit
MOST_WAITING = 1 << 24  # what the C++ queue can hold


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """One engine's queue now, and what went through it since the start."""

    limit: int  # requests in flight at most
    num_in_flight: int
    num_waiting: int
    num_admitted: int
    num_waited: int  # admitted ones that had to wait
    num_refused: int  # the queue was full
    total_wait_s: float
    max_wait_s: float


@dataclass(slots=True)
class _Counters:
    num_admitted: int = 0
    num_waited: int = 0
    num_refused: int = 0
    total_wait_s: float = 0.0
    max_wait_s: float = 0.0


class QueuedRequest(NamedTuple):
    """What the C++ queue orders by, in the order of its parameters."""

    query_seq: int
    node_id: int
    remaining_path: float
    remaining_work: float


class Admission:
    """In-flight limits of the engines, shared by all live queries of one event loop.

    limits: engine name to requests in flight at most. max_waiting: over all engines; one more
    raises BackendUnavailable.
    """

    def __init__(
        self,
        limits: Mapping[str, int],
        policy: PolicyName = "oldest_query_first",
        *,
        max_waiting: int = MAX_WAITING,
    ) -> None:
        policies = _core.Policy.__members__
        if policy not in policies:
            raise ConfigError(f"policy {policy!r} is unknown; there are {', '.join(policies)}")
        if not 0 <= max_waiting <= MOST_WAITING:
            raise ConfigError(f"max_waiting is {max_waiting}, allowed are 0 to {MOST_WAITING}")
        self.policy = policy
        self._max_waiting = max_waiting
        self._engines = {name: number for number, name in enumerate(limits)}
        self._counters = [_Counters() for _ in limits]
        self._queue = self._make_queue(limits)
        self._waiters: dict[int, asyncio.Future[None]] = {}

    @property
    def is_idle(self) -> bool:
        """Whether no request is in flight; then none waits either."""
        return not any(self._queue.num_in_flight(each) for each in self._engines.values())

    def set_limits(self, limits: Mapping[str, int]) -> None:
        """Replace the limits of these engines. Only while `is_idle`: what is in flight was admitted
        under the old ones. Raises ConfigError."""
        assert self.is_idle
        now = {name: self._queue.limit(number) for name, number in self._engines.items()}
        self._queue = self._make_queue({name: limits.get(name, now[name]) for name in now})

    def slot(
        self,
        engine: str,
        query_seq: int,
        node_id: int,
        remaining_path: float,
        remaining_work: float | None = None,
    ) -> AdmissionTicket:
        """`async with` it: inside, the engine is one request fuller.

        query_seq: rises with the arrival of queries. remaining_path: costs from the node to a leaf.
        remaining_work: costs of all unfinished nodes of the query, for least_remaining_work alone;
        the path when not given. Raises ConfigError for an engine without a limit.
        """
        number = self._engines.get(engine)
        if number is None:
            raise ConfigError(
                f"engine {engine!r} has no in-flight limit; there are {', '.join(self._engines)}"
            )
        work = remaining_path if remaining_work is None else remaining_work
        request = QueuedRequest(query_seq, node_id, remaining_path, work)
        return AdmissionTicket(self, number, request)

    def loads(self) -> dict[str, EngineLoad]:
        """By engine name, for the metrics."""
        return {name: self._load(number) for name, number in self._engines.items()}

    def load(self, engine: str) -> EngineLoad:
        """Of one engine, which must have a limit."""
        return self._load(self._engines[engine])

    def check(self) -> None:
        """Raises AssertionError unless each request in the queue has one future that wakes it."""
        num_waiting = sum(self._queue.num_waiting(each) for each in self._engines.values())
        assert num_waiting == len(self._waiters), (num_waiting, len(self._waiters))

    def _make_queue(self, limits: Mapping[str, int]) -> _core.AdmissionQueue:
        if not limits or min(limits.values()) < 1:
            raise ConfigError(f"in-flight limits are {dict(limits)}: each engine needs at least 1")
        policy = _core.Policy.__members__[self.policy]
        return _core.AdmissionQueue(list(limits.values()), policy, self._max_waiting)

    def _load(self, engine: int) -> EngineLoad:
        counters = self._counters[engine]
        return EngineLoad(
            limit=self._queue.limit(engine),
            num_in_flight=self._queue.num_in_flight(engine),
            num_waiting=self._queue.num_waiting(engine),
            num_admitted=counters.num_admitted,
            num_waited=counters.num_waited,
            num_refused=counters.num_refused,
            total_wait_s=counters.total_wait_s,
            max_wait_s=counters.max_wait_s,
        )

    async def _enter(self, slot: AdmissionTicket) -> None:
        counters = self._counters[slot.engine]
        try:
            slot.number = self._queue.enter(*slot.request, slot.engine)
        except BackendUnavailable as error:
            error.node_id = slot.request.node_id
            counters.num_refused += 1
            raise
        if slot.number is not None:
            await self._wait(slot, counters)
        counters.num_admitted += 1

    async def _wait(self, slot: AdmissionTicket, counters: _Counters) -> None:
        loop = asyncio.get_running_loop()
        since = loop.time()
        future = loop.create_future()
        assert slot.number is not None
        self._waiters[slot.number] = future
        try:
            await future
        except asyncio.CancelledError:
            # The number is not the first one when the request was promoted meanwhile.
            if self._waiters.pop(slot.number, None) is not None:
                self._queue.cancel(slot.number)
            elif not future.cancelled():
                # Woken and cancelled in the same turn of the loop: the slot is ours to pass on.
                self._leave(slot.engine)
            raise
        wait_s = loop.time() - since
        counters.num_waited += 1
        counters.total_wait_s += wait_s
        counters.max_wait_s = max(counters.max_wait_s, wait_s)

    def _promote(self, slot: AdmissionTicket, other: AdmissionTicket) -> None:
        if slot.number is None:
            return
        number = self._queue.promote(slot.number, *other.request)
        if number is None:
            return  # its place is no later, or it was woken
        self._waiters[number] = self._waiters.pop(slot.number)
        slot.number, slot.request = number, other.request

    def _leave(self, engine: int) -> None:
        while (number := self._queue.release(engine)) is not None:
            future = self._waiters.pop(number)
            if not future.done():
                future.set_result(None)
                return
            # Its task was cancelled and has not run since: it passes the slot on.


@dataclass(slots=True)
class AdmissionTicket:
    """A request's right to wait for an engine and then to use it: what `Admission.slot` returns.

    A class, as a generator would cost microseconds a node.
    """

    admission: Admission
    engine: int
    request: QueuedRequest
    number: int | None = None  # of its last place in the queue

    def promote(self, other: AdmissionTicket) -> None:
        """Take the place of `other`, a request to the same engine, if this one waits behind it.

        `other` must not enter the queue itself. Only policies that order by query or path do this.
        """
        self.admission._promote(self, other)

    async def __aenter__(self) -> None:
        await self.admission._enter(self)

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.admission._leave(self.engine)
