"""One engine request for all who ask the same at the same time, and a bounded cache of its answers.

Between `execute.py` and the engine, over all live queries. A flight is one generation with its
place in the admission queue, in a task of its own: whoever asked first may leave, the flight goes
on while anybody waits for it and is cancelled with the last of them.

What is shared: a response, and a refusal of the request itself, which would come again. Any other
failure is bad luck of that one flight; those who had joined it take a second one together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, MutableMapping
from dataclasses import dataclass, field

from cachetools import TTLCache

from compllm.backend import Backend, Chunk, GenerateRequest, collect
from compllm.errors import BackendError, BackendRejected, BackendUnavailable
from compllm.scheduling.admission import Slot

OnStart = Callable[[float], None]
_Response = tuple[str, Chunk]


@dataclass(frozen=True, slots=True)
class SharingStats:
    """What sharing has saved since the start."""

    num_running: int = 0  # flights now, those in the admission queue too
    num_flights: int = 0
    num_joined: int = 0  # requests that joined another's flight
    num_handed_over: int = 0  # flights whose first asker left while others waited
    num_refused_failures: int = 0  # failures that were not shared: the request flew again
    num_cache_hits: int = 0
    num_cached: int = 0  # responses in the cache now


@dataclass(frozen=True, slots=True)
class Outcome:
    """A response, and how it was come by."""

    text: str
    last: Chunk
    started_s: float  # of the loop's clock: it went to the engine; out of the cache: it was asked
    is_shared: bool  # another's flight, or the cache


class SingleFlight:
    """All generations of nodes. One per event loop; close it.

    is_shared: off, each request is a flight of its own. cache_size: responses kept for cache_ttl_s
    seconds after they came; the least recently used one goes first.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        is_shared: bool = True,
        cache_size: int = 0,
        cache_ttl_s: float = 300.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._is_shared = is_shared
        self._cache: MutableMapping[Hashable, _Response] = TTLCache(cache_size, cache_ttl_s, clock)
        self._can_cache = cache_size > 0
        self._flights: dict[Hashable, _Flight] = {}  # those that can still be joined
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_flights = self._num_joined = self._num_handed_over = 0
        self._num_refused_failures = self._num_cache_hits = 0

    async def generate(self, request: GenerateRequest, slot: Slot, on_start: OnStart) -> Outcome:
        """The response to this request or to one like it.

        slot: its place in the queue, not entered yet. on_start: told when it went to the engine,
        again where it flies a second time. Raises BackendError as the backend and admission do.
        """
        key = _key(request) if self._is_shared else None
        if self._can_cache and (known := self._cache.get(key)) is not None:
            self._num_cache_hits += 1
            now_s = asyncio.get_running_loop().time()
            on_start(now_s)
            return Outcome(*known, now_s, is_shared=True)
        try:
            return await self._fly(key, request, slot, on_start)
        except _NotShared:
            self._num_refused_failures += 1
        try:
            return await self._fly(key, request, slot, on_start)
        except _NotShared as failure:
            raise failure.error from failure.error.__cause__

    def stats(self) -> SharingStats:
        """Counters so far."""
        return SharingStats(
            len(self._tasks),
            self._num_flights,
            self._num_joined,
            self._num_handed_over,
            self._num_refused_failures,
            self._num_cache_hits,
            len(self._cache),
        )

    async def aclose(self) -> None:
        """Cancel what flies."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _fly(
        self, key: Hashable, request: GenerateRequest, slot: Slot, on_start: OnStart
    ) -> Outcome:
        flight = self._flights.get(key)  # never one without a key
        is_joined = flight is not None
        seat = _Seat(on_start, asyncio.get_running_loop().create_future())
        if flight is None:
            flight = self._launch(key, request, slot)
        else:
            self._num_joined += 1
            # The flight may wait in the queue for somebody less urgent than we are.
            flight.slot.promote(slot)
        flight.seat(seat)
        try:
            text, last = await seat.response
        except BackendError as error:
            if is_joined and not isinstance(error, BackendRejected):
                raise _NotShared(error) from error
            raise
        except asyncio.CancelledError:
            self._num_handed_over += not is_joined and len(flight.seats) > 1
            raise
        finally:
            flight.seats.remove(seat)
            if not flight.seats and not flight.is_over:
                self._forget(key, flight)
                flight.task.cancel()
                await asyncio.gather(flight.task, return_exceptions=True)
        assert flight.started_s is not None
        return Outcome(text, last, flight.started_s, is_joined)

    def _launch(self, key: Hashable, request: GenerateRequest, slot: Slot) -> _Flight:
        flight = _Flight(slot)
        flight.task = asyncio.create_task(self._run(key, request, flight))
        self._num_flights += 1
        self._tasks.add(flight.task)
        flight.task.add_done_callback(self._tasks.discard)
        if key is not None:
            self._flights[key] = flight
        return flight

    async def _run(self, key: Hashable, request: GenerateRequest, flight: _Flight) -> None:
        try:
            async with flight.slot:
                flight.start(asyncio.get_running_loop().time())
                text, last = await collect(self._backend, request)
        except Exception as error:
            self._forget(key, flight)
            flight.fail(error)
        except asyncio.CancelledError:
            self._forget(key, flight)
            flight.fail(BackendUnavailable("the path was closed while the engine was answering"))
            raise
        else:
            self._forget(key, flight)
            # An empty one is a failure, whose remedy is to ask another expert.
            if self._can_cache and key is not None and text.strip():
                self._cache[key] = text, last
            flight.land((text, last))

    def _forget(self, key: Hashable, flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


@dataclass(slots=True, eq=False)
class _Seat:
    """One who waits for a flight."""

    on_start: OnStart
    response: asyncio.Future[_Response]


@dataclass(slots=True, eq=False)
class _Flight:
    """Tells those who wait itself, each through a future of its own: one turn of the loop after
    the engine's last word they go on."""

    slot: Slot
    started_s: float | None = None
    is_over: bool = False
    seats: list[_Seat] = field(default_factory=list)
    task: asyncio.Task[None] = field(init=False)

    def seat(self, seat: _Seat) -> None:
        self.seats.append(seat)
        if self.started_s is not None:
            seat.on_start(self.started_s)

    def start(self, at_s: float) -> None:
        self.started_s = at_s
        for seat in self.seats:
            seat.on_start(at_s)

    def land(self, response: _Response) -> None:
        self.is_over = True
        for seat in self.seats:
            if not seat.response.done():
                seat.response.set_result(response)

    def fail(self, error: Exception) -> None:
        self.is_over = True
        for seat in self.seats:
            if not seat.response.done():
                seat.response.set_exception(error)


class _NotShared(Exception):
    """Another's flight failed in a way that need not be ours."""

    def __init__(self, error: BackendError) -> None:
        super().__init__(str(error))
        self.error = error


def _key(request: GenerateRequest) -> Hashable:
    """What makes two requests the same; None for one whose tokens are drawn by chance."""
    if request.sampling.temperature != 0:
        return None
    return (
        request.model,
        request.adapter_id,
        request.prompt,
        request.sampling,
        request.guide,
        request.wants_log_probs,
    )
