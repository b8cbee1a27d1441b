"""Single flight: equal requests at the same time share one generation; a bounded response cache.

It stands between `execute.py` and the engine, for all live queries. A shared request is one
generation in a task of its own, with a place in the admission queue. The request that started it
may leave. The generation runs while any request waits for it. It is cancelled when the last one
leaves.

Two outcomes are shared: a response, and a refusal of the request itself, because the engine would
refuse it again. Any other failure concerns that one generation only. The requests that had joined
it then share a second generation.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, MutableMapping
from dataclasses import dataclass, field

from cachetools import TTLCache

from compllm.backend import Backend, Chunk, GenerateRequest, collect
from compllm.errors import BackendError, BackendRejected, BackendUnavailable
from compllm.scheduling.admission import AdmissionTicket

OnStart = Callable[[float], None]
_Response = tuple[str, Chunk]


@dataclass(frozen=True, slots=True)
class SharingStats:
    """What sharing has saved since the start."""

    num_running: int = 0  # shared requests now, also those in the admission queue
    num_flights: int = 0  # shared requests so far
    num_joined: int = 0  # requests that joined a running shared request
    num_handed_over: int = 0  # the first request left while others waited
    num_refused_failures: int = 0  # failures that were not shared: the request was sent again
    num_cache_hits: int = 0
    num_cached: int = 0  # responses in the cache now


@dataclass(frozen=True, slots=True)
class Outcome:
    """A response and its source."""

    text: str
    last: Chunk
    started_s: float  # by the loop's clock, when it was sent to the engine or read from the cache
    is_shared: bool  # from a request that was already running, or from the cache


class SingleFlight:
    """All generations of nodes. One instance per event loop; close it.

    is_shared: if False, each request is sent by itself. cache_size: the number of responses kept,
    each for cache_ttl_s seconds. The least recently used response is dropped first.
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
        self._joinable: dict[Hashable, SharedRequest] = {}  # by `_key`
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_flights = self._num_joined = self._num_handed_over = 0
        self._num_refused_failures = self._num_cache_hits = 0

    async def generate(
        self, request: GenerateRequest, slot: AdmissionTicket, on_start: OnStart
    ) -> Outcome:
        """The response to this request or to an equal one.

        slot: the request's place in the queue, not entered yet. on_start: called when the request
        goes to the engine, and again if it is sent a second time. Raises the BackendErrors of the
        backend and of admission.
        """
        key = _key(request) if self._is_shared else None
        if self._can_cache and (known := self._cache.get(key)) is not None:
            self._num_cache_hits += 1
            now_s = asyncio.get_running_loop().time()
            on_start(now_s)
            return Outcome(*known, now_s, is_shared=True)
        try:
            return await self._join_or_start(key, request, slot, on_start)
        except _NotShared:
            self._num_refused_failures += 1
        try:
            return await self._join_or_start(key, request, slot, on_start)
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

    def check(self) -> None:
        """Raises AssertionError if a request could join one that has ended."""
        ended = [each for each in self._joinable.values() if each.task not in self._tasks]
        assert not ended, f"{len(ended)} shared requests have ended but can still be joined"

    async def aclose(self) -> None:
        """Cancel all running generations."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _join_or_start(
        self, key: Hashable, request: GenerateRequest, slot: AdmissionTicket, on_start: OnStart
    ) -> Outcome:
        shared = self._joinable.get(key)  # none if the key is None
        is_joined = shared is not None
        waiter = Waiter(on_start, asyncio.get_running_loop().create_future())
        if shared is None:
            shared = self._launch(key, request, slot)
        else:
            self._num_joined += 1
            # The shared request may have the place of a less urgent query in the queue.
            shared.slot.promote(slot)
        shared.add(waiter)
        try:
            text, last = await waiter.response
        except BackendError as error:
            if is_joined and not isinstance(error, BackendRejected):
                raise _NotShared(error) from error
            raise
        except asyncio.CancelledError:
            self._num_handed_over += not is_joined and len(shared.waiters) > 1
            raise
        finally:
            shared.waiters.remove(waiter)
            if not shared.waiters and not shared.is_over:
                self._forget(key, shared)
                shared.task.cancel()
                await asyncio.gather(shared.task, return_exceptions=True)
        assert shared.started_s is not None
        return Outcome(text, last, shared.started_s, is_joined)

    def _launch(
        self, key: Hashable, request: GenerateRequest, slot: AdmissionTicket
    ) -> SharedRequest:
        shared = SharedRequest(slot)
        shared.task = asyncio.create_task(self._run(key, request, shared))
        self._num_flights += 1
        self._tasks.add(shared.task)
        shared.task.add_done_callback(self._tasks.discard)
        if key is not None:
            self._joinable[key] = shared
        return shared

    async def _run(self, key: Hashable, request: GenerateRequest, shared: SharedRequest) -> None:
        try:
            async with shared.slot:
                shared.start(asyncio.get_running_loop().time())
                text, last = await collect(self._backend, request)
        except Exception as error:
            self._forget(key, shared)
            shared.fail(error)
        except asyncio.CancelledError:
            self._forget(key, shared)
            shared.fail(BackendUnavailable("the path was closed while the engine was answering"))
            raise
        else:
            self._forget(key, shared)
            # An empty response is a failure: the caller asks another expert.
            if self._can_cache and key is not None and text.strip():
                self._cache[key] = text, last
            shared.finish((text, last))

    def _forget(self, key: Hashable, shared: SharedRequest) -> None:
        if self._joinable.get(key) is shared:
            del self._joinable[key]


@dataclass(slots=True, eq=False)
class Waiter:
    """A request that waits for a shared one."""

    on_start: OnStart
    response: asyncio.Future[_Response]


@dataclass(slots=True, eq=False)
class SharedRequest:
    """One generation and the requests that wait for it.

    Each request waits for a future of its own, which is set here. So it resumes one turn of the
    event loop after the engine's last chunk.
    """

    slot: AdmissionTicket
    started_s: float | None = None
    is_over: bool = False
    waiters: list[Waiter] = field(default_factory=list)
    task: asyncio.Task[None] = field(init=False)

    def add(self, waiter: Waiter) -> None:
        self.waiters.append(waiter)
        if self.started_s is not None:
            waiter.on_start(self.started_s)

    def start(self, at_s: float) -> None:
        self.started_s = at_s
        for waiter in self.waiters:
            waiter.on_start(at_s)

    def finish(self, response: _Response) -> None:
        self.is_over = True
        for waiter in self.waiters:
            if not waiter.response.done():
                waiter.response.set_result(response)

    def fail(self, error: Exception) -> None:
        self.is_over = True
        for waiter in self.waiters:
            if not waiter.response.done():
                waiter.response.set_exception(error)


class _NotShared(Exception):
    """The joined request failed, but a new request need not fail."""

    def __init__(self, error: BackendError) -> None:
        super().__init__(str(error))
        self.error = error


def _key(request: GenerateRequest) -> Hashable:
    """Equal for requests that can share a response; None if tokens are sampled at random."""
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
