"""Adapters in an engine's bounded cache, seen by a client, against a model of such a cache."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compllm.backends import wire
from compllm.backends.lora_client import LoraClient, LoraCounts
from compllm.backends.stream import AdapterMissing, CacheFull
from compllm.errors import ArtefactError, BackendRejected


def tensors(number: int = 1) -> wire.AdapterTensors:
    return np.full((1, 2), number, np.float16), np.array([[1, 0, 1, 0]], np.int32)


class Cache:
    """TensorRT-LLM's: `num_slots` adapters, those in use cannot go, the longest idle one goes."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.users: dict[int, int] = {}  # in the order of their last end
        self.num_loads = self.num_evictions = self.num_refusals = 0
        self.order: list[int] = []
        self._changed = asyncio.Event()

    async def until(self, is_so: Callable[[], bool]) -> None:
        while not is_so():
            self._changed.clear()
            await self._changed.wait()

    def begin(self, task_id: int, weights: wire.AdapterTensors | None) -> None:
        self._changed.set()
        if task_id not in self.users:
            if weights is None:
                raise AdapterMissing(f"LoRA task {task_id} not found in cache")
            assert weights[0][0, 0] == task_id
            if len(self.users) == self.num_slots:
                idle = [each for each, users in self.users.items() if users == 0]
                if not idle:
                    self.num_refusals += 1
                    raise CacheFull("Cache is full. There are no done tasks to evict")
                del self.users[idle[0]]
                self.num_evictions += 1
            self.users[task_id] = 0
            self.num_loads += 1
        self.users[task_id] += 1
        self.order.append(task_id)

    def end(self, task_id: int) -> None:
        self.users[task_id] -= 1
        self.users[task_id] = self.users.pop(task_id)  # to the end of the order


async def ask(
    client: LoraClient, cache: Cache, task_id: int, num_turns: int = 1, latency: int = 0
) -> LoraCounts:
    """One request: messages and answers take `latency` turns of the loop, the work `num_turns`."""
    counts = LoraCounts()

    async def turns(count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async with client.use(task_id, counts) as use:
        while True:
            try:
                async with use.weights() as sent:
                    pass
                await turns(latency)
                cache.begin(task_id, sent)
                break
            except AdapterMissing as error:
                await turns(latency)
                use.missing(error)
            except CacheFull as error:
                await turns(latency)
                await use.full(error)
        await turns(num_turns)
        use.accepted()
        cache.end(task_id)
        await turns(latency)
    return counts


async def hold(client: LoraClient, cache: Cache, task_id: int, done: asyncio.Event) -> None:
    """One request that lasts until `done`."""
    async with client.use(task_id, LoraCounts()) as use:
        async with use.weights() as sent:
            cache.begin(task_id, sent)
        await done.wait()
        use.accepted()
        cache.end(task_id)


def total(counts: Iterable[LoraCounts]) -> LoraCounts:
    summed = LoraCounts()
    for each in counts:
        summed.add(each)
    return summed


async def test_weights_go_with_the_first_request_alone() -> None:
    client, cache = LoraClient(tensors), Cache(2)
    counts = [await ask(client, cache, 1) for _ in range(3)]
    assert [each.num_weight_sends for each in counts] == [1, 0, 0]


async def test_those_who_come_together_send_the_weights_once() -> None:
    client, cache = LoraClient(tensors), Cache(2)
    counts = await asyncio.gather(*(ask(client, cache, 1, 3, 2) for _ in range(8)))
    assert total(counts) == LoraCounts(1, 0, 0, pytest.approx(0, abs=1))


async def test_evicted_adapter_is_sent_again_once_for_all_who_miss_it() -> None:
    client, cache = LoraClient(tensors), Cache(1)
    await ask(client, cache, 1)
    await ask(client, cache, 2)
    counts = total(await asyncio.gather(*(ask(client, cache, 1, 3, 2) for _ in range(8))))
    assert counts.num_weight_sends == 1
    assert 1 <= counts.num_misses <= 8


async def test_prefetched_adapter_is_asked_for_by_its_id() -> None:
    client, cache = LoraClient(tensors, is_prefetched=True), Cache(2)
    cache.users[1] = 0
    assert (await ask(client, cache, 1)).num_weight_sends == 0
    assert (await ask(client, cache, 2)).num_weight_sends == 1


async def test_base_has_no_adapter_and_waits_for_none() -> None:
    client, counts = LoraClient(tensors), LoraCounts()
    async with client.use(None, counts) as use, use.weights() as sent:
        assert sent is None
    assert counts == LoraCounts()


async def test_adapter_that_nobody_has_is_refused_as_the_engine_said() -> None:
    with pytest.raises(AdapterMissing, match="LoRA task 5"):
        await ask(LoraClient(), Cache(1), 5)
    with pytest.raises(AdapterMissing, match="LoRA task 5"):
        await ask(LoraClient(lambda task_id: None), Cache(1), 5)


async def test_engine_that_lacks_what_it_was_just_given_is_believed() -> None:
    counts = LoraCounts()
    async with LoraClient(tensors).use(1, counts) as use:
        async with use.weights() as sent:
            assert sent is not None
        with pytest.raises(AdapterMissing):
            use.missing(AdapterMissing("LoRA task 1 not found in cache"))


async def test_unreadable_weights_refuse_the_request() -> None:
    def damaged(task_id: int) -> wire.AdapterTensors:
        raise ArtefactError("it is damaged")

    with pytest.raises(BackendRejected, match="adapter 3 cannot be read: it is damaged"):
        await ask(LoraClient(damaged), Cache(1), 3)


async def test_other_weights_under_an_id_are_never_sent() -> None:
    contents = iter((1, 2))
    client = LoraClient(lambda task_id: tensors(next(contents)))
    cache = Cache(1)
    await ask(client, cache, 1)
    cache.users.clear()
    with pytest.raises(BackendRejected, match="weights of adapter 1 changed"):
        await ask(client, cache, 1)


async def test_full_cache_is_waited_for_until_an_adapter_is_done() -> None:
    client, cache = LoraClient(tensors), Cache(1)
    done = asyncio.Event()

    first = asyncio.create_task(hold(client, cache, 1, done))
    await cache.until(lambda: cache.users == {1: 1})
    second = asyncio.create_task(ask(client, cache, 2))
    await cache.until(lambda: cache.num_refusals == 1)
    assert client.capacity == 1
    done.set()
    await first
    counts = await second
    assert (counts.num_refusals, counts.num_weight_sends) == (1, 2)
    assert cache.order == [1, 2]


async def test_cache_that_others_fill_is_asked_again_and_given_up_in_the_end() -> None:
    client, cache = LoraClient(tensors, max_wait_s=0.05), Cache(1)
    cache.users[99] = 1
    with pytest.raises(CacheFull, match=r"no place for adapter 1 .* within 0\.05 s"):
        await ask(client, cache, 1)
    cache.users[99] = 0
    assert (await ask(client, cache, 1)).num_refusals == 0


async def test_who_waits_and_is_cancelled_holds_up_nobody() -> None:
    client, cache = LoraClient(tensors), Cache(1)
    # Until an event, not for some turns of the loop: weights come from threads, at times too late.
    done = asyncio.Event()
    holders = [asyncio.create_task(hold(client, cache, 1, done)) for _ in range(2)]
    await cache.until(lambda: cache.users == {1: 2})
    waiting = [asyncio.create_task(ask(client, cache, each)) for each in (2, 3)]
    await cache.until(lambda: cache.num_refusals == 2)
    waiting[0].cancel()
    done.set()
    await asyncio.gather(*holders, waiting[1])
    assert waiting[0].cancelled()
    assert cache.order[-1] == 3


async def test_an_adapter_in_constant_use_lets_others_in() -> None:
    client, cache = LoraClient(tensors, patience_s=0.0), Cache(1)
    stop = asyncio.Event()

    async def keep_asking() -> None:
        while not stop.is_set():
            await ask(client, cache, 1, 5)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(4):
            tasks.create_task(keep_asking())
        await ask(client, cache, 2)
        stop.set()
    assert 2 in cache.order


async def test_one_adapter_more_is_tried_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    client, cache = LoraClient(tensors), Cache(1)
    done = asyncio.Event()
    holder = asyncio.create_task(hold(client, cache, 1, done))
    await cache.until(lambda: cache.users == {1: 1})
    waiting = [asyncio.create_task(ask(client, cache, each)) for each in range(2, 8)]
    await cache.until(lambda: cache.num_refusals == 6)
    await asyncio.sleep(0.1)  # all six wait again
    assert cache.num_refusals == 6
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + 2)  # the wait after a refusal is over
    waiting.append(asyncio.create_task(ask(client, cache, 8)))
    await asyncio.sleep(0.1)
    assert cache.num_refusals == 7
    done.set()
    await asyncio.gather(holder, *waiting)
    assert cache.num_refusals <= 9


@settings(max_examples=40, deadline=None)
@given(
    num_slots=st.integers(1, 5),
    num_adapters=st.integers(1, 8),
    latency=st.integers(0, 6),
    seed=st.integers(0, 2**32 - 1),
)
def test_storms_end_with_every_request_answered_and_few_weights_sent(
    num_slots: int, num_adapters: int, latency: int, seed: int
) -> None:
    rng = random.Random(seed)
    cache = Cache(num_slots)

    async def storm() -> LoraCounts:
        client = LoraClient(tensors, max_wait_s=30)
        return total(
            await asyncio.gather(
                *(
                    ask(client, cache, rng.randrange(num_adapters), rng.randrange(1, 9), latency)
                    for _ in range(64)
                )
            )
        )

    counts = asyncio.run(storm())
    assert len(cache.order) == 64
    assert not any(cache.users.values())
    num_used = len(set(cache.order))
    assert counts.num_weight_sends - num_used <= cache.num_evictions + num_adapters
