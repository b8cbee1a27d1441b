"""The life of LoRA adapters in an engine's cache, as far as one client can know it.

`triton.py` asks it at each request. TensorRT-LLM's cache is bounded and reports nothing. The first
request of an adapter carries its weights, later ones carry its id alone. An evicted adapter is "not
found in cache" and is sent again, once for all requests that wait for it. While every adapter in
the cache is in use, the engine refuses another: "Cache is full". Requests then wait here, not in
front of the engine. The refusals show how many adapters the engine holds at a time. An adapter that
waits takes the place of one whose last request has ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from compllm.backends import wire
from compllm.backends.stream import AdapterMissing, CacheFull
from compllm.errors import BackendRejected, ConfigError

AdapterWeights = Callable[[int], wire.AdapterTensors | None]  # by task id; None: not known here

_PROBE_S, _MAX_PROBE_S = 1.0, 60.0  # after a refusal, until one adapter more is tried
_BACKOFF_S, _MAX_BACKOFF_S = 0.05, 2.0


@dataclass(slots=True)
class LoraCounts:
    """What adapters cost: of one request, or of all."""

    num_weight_sends: int = 0  # messages that carried weights
    num_misses: int = 0  # "not found in cache"
    num_refusals: int = 0  # "Cache is full"
    wait_s: float = 0.0  # for a place in the cache

    def add(self, other: LoraCounts) -> None:
        self.num_weight_sends += other.num_weight_sends
        self.num_misses += other.num_misses
        self.num_refusals += other.num_refusals
        self.wait_s += other.wait_s


@dataclass(slots=True, eq=False)
class _Adapter:
    """What we believe of one adapter; each answer of the engine confirms or corrects it."""

    is_known: bool  # its id alone may be enough
    num_sends: int = 0
    digest: bytes = b""  # of the weights that were sent
    sending: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass(slots=True, eq=False)
class CacheLease:
    """The time an adapter spends in the cache: from its first request to the end of its last."""

    task_id: int
    is_probe: bool = False  # more adapters than the engine is known to hold
    num_users: int = 0


@dataclass(slots=True, eq=False)
class _Waiter:
    task_id: int
    since: float
    lease: asyncio.Future[CacheLease]


class LoraClient:
    """One for each engine and event loop.

    weights: gives an adapter's tensors, called on a thread. is_prefetched: the engine says that it
    has loaded its adapters itself, so ids are tried first. max_wait_s: that a request waits for a
    place before it fails with CacheFull. patience_s: that an adapter waits before those in the
    cache take no more requests.
    """

    def __init__(
        self,
        weights: AdapterWeights | None = None,
        *,
        is_prefetched: bool = False,
        max_wait_s: float = 60.0,
        patience_s: float = 0.5,
    ) -> None:
        self._weights = weights
        self._is_prefetched = is_prefetched
        self._max_wait_s, self._patience_s = max_wait_s, patience_s
        self._adapters: dict[int, _Adapter] = {}
        self._leases: dict[int, CacheLease] = {}  # of adapters in use
        self._waiting: list[_Waiter] = []  # in the order they came
        self._capacity: int | None = None  # adapters in use at a time; None: no limit met yet
        self._probe_wait_s = _PROBE_S
        self._probe_at = 0.0

    @property
    def capacity(self) -> int | None:
        """How many adapters the engine was found to hold in use at a time."""
        return self._capacity

    @asynccontextmanager
    async def use(self, task_id: int | None, counts: LoraCounts) -> AsyncIterator[AdapterUse]:
        """A lease for one request, from before its first message to its last response."""
        use = AdapterUse(self, task_id, counts)
        try:
            await use._keep_lease()
            yield use
        finally:
            use._leave()

    def _adapter(self, task_id: int) -> _Adapter:
        return self._adapters.setdefault(task_id, _Adapter(self._is_prefetched))

    async def _pause(self, num_refusals: int) -> None:
        """Wait while other clients fill the cache: no request of ours ends and makes room."""
        try:
            await asyncio.sleep(
                random.uniform(0, min(_MAX_BACKOFF_S, _BACKOFF_S * 2**num_refusals))
            )
        finally:
            self._wake()

    async def _load(self, task_id: int, adapter: _Adapter) -> wire.AdapterTensors | None:
        """The tensors, which must be those that this id has always had."""
        if self._weights is None:
            return None
        try:
            tensors = await asyncio.to_thread(self._weights, task_id)
        except (ConfigError, OSError) as error:
            raise BackendRejected(f"adapter {task_id} cannot be read: {error}") from error
        if tensors is None:
            return None
        digest = await asyncio.to_thread(_digest, tensors)
        if adapter.digest not in (b"", digest):
            raise BackendRejected(
                f"the weights of adapter {task_id} changed since they were first sent, and the "
                "engine may still hold the old ones: build the engine again, which gives changed "
                "adapters new ids, and connect anew"
            )
        adapter.digest = digest
        return tensors

    # Leases

    async def _enter(self, task_id: int) -> CacheLease:
        loop = asyncio.get_running_loop()
        now = loop.time()
        lease = self._leases.get(task_id)
        is_urgent = bool(self._waiting) and now - self._waiting[0].since > self._patience_s
        if lease is not None and not is_urgent:
            lease.num_users += 1
            return lease
        waiter = _Waiter(task_id, now, loop.create_future())
        self._waiting.append(waiter)
        self._wake()
        try:
            return await waiter.lease
        except asyncio.CancelledError:
            if waiter.lease.cancelled():
                self._waiting = [each for each in self._waiting if each is not waiter]
                self._wake()
            else:  # woken and cancelled in the same turn of the loop
                self._leave(waiter.lease.result())
            raise

    def _leave(self, lease: CacheLease) -> None:
        lease.num_users -= 1
        if lease.num_users == 0 and self._is_current(lease):
            del self._leases[lease.task_id]
            self._wake()

    def _is_current(self, lease: CacheLease) -> bool:
        return self._leases.get(lease.task_id) is lease

    def _open(self, task_id: int) -> CacheLease:
        is_probe = self._capacity is not None and len(self._leases) >= self._capacity
        if is_probe:  # one at a time
            self._probe_at = asyncio.get_running_loop().time() + self._probe_wait_s
        lease = self._leases[task_id] = CacheLease(task_id, is_probe)
        return lease

    def _has_room(self) -> bool:
        if self._capacity is None or len(self._leases) < self._capacity:
            return True
        return asyncio.get_running_loop().time() >= self._probe_at

    def _wake(self) -> None:
        """Give leases to the longest waiting request and to all that wait for the same adapter."""
        while self._waiting:
            task_id = self._waiting[0].task_id
            lease = self._leases.get(task_id)
            if lease is None:
                if not self._has_room():
                    return
                lease = self._open(task_id)
            for waiter in [each for each in self._waiting if each.task_id == task_id]:
                self._waiting.remove(waiter)
                if not waiter.lease.done():  # else: cancelled, and about to notice
                    lease.num_users += 1
                    waiter.lease.set_result(lease)
            if lease.num_users == 0:
                del self._leases[task_id]

    def _accepted(self, lease: CacheLease) -> None:
        if lease.is_probe:
            lease.is_probe = False
            self._probe_wait_s = _PROBE_S
            self._capacity = max(self._capacity or 0, len(self._leases))

    def _refused(self, lease: CacheLease) -> bool:
        """The engine takes no more adapters. Says whether an end of ours will make room."""
        if self._is_current(lease):
            del self._leases[lease.task_id]
            if lease.is_probe:
                self._probe_wait_s = min(2 * self._probe_wait_s, _MAX_PROBE_S)
            self._capacity = max(1, len(self._leases))
            self._probe_at = asyncio.get_running_loop().time() + self._probe_wait_s
        return bool(self._leases)


class AdapterUse:
    """One request's dealings with its adapter; those of the base have none."""

    def __init__(self, client: LoraClient, task_id: int | None, counts: LoraCounts) -> None:
        self._client = client
        self._task_id = task_id
        self._counts = counts
        self._lease: CacheLease | None = None
        self._num_sends = 0  # of the adapter, when this request was last sent
        self._is_helpless = False  # it was sent with the weights, or there are none to send
        self._num_refusals = 0

    @asynccontextmanager
    async def weights(self) -> AsyncIterator[wire.AdapterTensors | None]:
        """What the message must carry. It must be on its way when the block is left: others that
        follow it on the same stream rely on it."""
        if self._task_id is None:
            yield None
            return
        adapter = self._client._adapter(self._task_id)
        while True:
            await self._keep_lease()
            if adapter.is_known:
                self._is_helpless = False
                self._num_sends = adapter.num_sends
                yield None
                return
            async with adapter.sending:
                if adapter.is_known or not self._has_lease():
                    continue  # another request has sent it, or was refused, meanwhile
                tensors = await self._client._load(self._task_id, adapter)
                if not self._has_lease():
                    continue
                yield tensors
                self._is_helpless = True
                if tensors is not None:
                    adapter.is_known = True
                    adapter.num_sends += 1
                    self._counts.num_weight_sends += 1
                self._num_sends = adapter.num_sends
                return

    def accepted(self) -> None:
        """The engine has answered: the adapter is there."""
        if self._lease is not None:
            self._client._accepted(self._lease)

    def missing(self, error: AdapterMissing) -> None:
        """The request is to be sent again. Raises `error` where that would not help."""
        self._counts.num_misses += 1
        if self._is_helpless or self._task_id is None:
            raise error
        self._forget()

    async def full(self, error: CacheFull) -> None:
        """Return when the request may be sent again: `weights` will wait for a lease. Raises
        CacheFull when that takes too long."""
        self._counts.num_refusals += 1
        self._num_refusals += 1
        if self._lease is None:
            raise error
        self._forget()
        has_own_end = self._client._refused(self._lease)
        self._leave()
        if not has_own_end:
            async with self._waiting():
                await self._client._pause(self._num_refusals)

    def _forget(self) -> None:
        """Unless another request has sent it since."""
        assert self._task_id is not None
        adapter = self._client._adapter(self._task_id)
        if adapter.num_sends == self._num_sends:
            adapter.is_known = False

    def _has_lease(self) -> bool:
        return self._lease is not None and self._client._is_current(self._lease)

    async def _keep_lease(self) -> None:
        """Wait for a lease where we have none, or where the engine has revoked it."""
        if self._task_id is not None and not self._has_lease():
            self._leave()
            async with self._waiting():
                self._lease = await self._client._enter(self._task_id)

    @asynccontextmanager
    async def _waiting(self) -> AsyncIterator[None]:
        """All waits of one request together have a limit. Raises CacheFull beyond it."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        try:
            async with asyncio.timeout(self._client._max_wait_s - self._counts.wait_s):
                yield
        except TimeoutError as error:
            raise CacheFull(
                f"no place for adapter {self._task_id} in the engine's LoRA cache within "
                f"{self._client._max_wait_s:g} s: give the cache more memory, or send fewer "
                "adapters at a time"
            ) from error
        finally:
            self._counts.wait_s += loop.time() - since

    def _leave(self) -> None:
        if self._lease is not None:
            self._client._leave(self._lease)
            self._lease = None


def _digest(tensors: wire.AdapterTensors) -> bytes:
    digest = hashlib.sha256()
    for each in tensors:
        digest.update(repr((each.shape, each.dtype.str)).encode())
        digest.update(each.tobytes())
    return digest.digest()
