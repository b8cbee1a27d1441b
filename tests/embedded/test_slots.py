"""Adapter slots: who is in which, who uses it, who makes room."""

from __future__ import annotations

import threading

import pytest

from compllm.embedded.slots import AdapterSlots, Slot, SlotStats
from compllm.errors import AdapterUnknown, EngineOverloaded


def filled(*task_ids: int) -> AdapterSlots:
    slots = AdapterSlots(len(task_ids))
    for task_id in task_ids:
        slots.assign(task_id)
    return slots


def test_the_base_is_slot_0_and_adapters_follow() -> None:
    slots = AdapterSlots(2)
    assert slots.acquire(None).index == 0
    assert [slots.assign(task_id).index for task_id in (70, 80)] == [1, 2]
    assert slots.task_ids == (70, 80)


def test_unknown_adapter_is_refused_in_tensorrt_llms_words() -> None:
    with pytest.raises(AdapterUnknown, match=r"LoRA task 7 not found in cache\. Please send"):
        AdapterSlots(1).acquire(7)
    with pytest.raises(AdapterUnknown, match="adapter 7 is not loaded"):
        AdapterSlots(1).remove(7)


def test_the_least_recently_used_idle_adapter_makes_room() -> None:
    slots = filled(1, 2, 3)
    for task_id in (1, 3, 2, 1):
        slots.release(slots.acquire(task_id))
    freed: list[Slot] = []
    new = slots.assign(4, freed.append)
    assert [slot.task_id for slot in freed] == [3]
    assert new.index == freed[0].index
    assert slots.task_ids == (1, 2, 4)


def test_an_adapter_in_use_is_never_evicted() -> None:
    slots = filled(1, 2)
    slots.acquire(1)
    assert slots.assign(3).index == 2
    slots.acquire(3)
    with pytest.raises(EngineOverloaded, match=r"Cache is full\. There are no done tasks to evict"):
        slots.assign(4)
    assert slots.task_ids == (1, 3)


def test_a_replaced_adapter_stays_until_its_last_user_leaves() -> None:
    slots, freed = AdapterSlots(2), list[Slot]()
    slots.assign(1)
    first, second = slots.acquire(1), slots.acquire(1)
    new = slots.assign(1, freed.append)
    assert new.index != first.index
    assert slots.acquire(1) is new
    slots.release(first)
    assert not freed
    slots.release(second)
    assert freed == [first]
    assert slots.assign(2).index == first.index


def test_a_replaced_idle_adapter_gives_its_own_slot() -> None:
    slots, freed = filled(1), list[Slot]()
    old = slots.acquire(1)
    slots.release(old)
    new = slots.assign(1, freed.append)
    assert freed == [old]
    assert new.index == old.index
    assert new.key != old.key, "the cache must not take one's keys and values for the other's"


def test_a_replaced_adapter_in_use_needs_another_slot() -> None:
    slots = filled(1)
    slots.acquire(1)
    with pytest.raises(EngineOverloaded, match="Cache is full"):
        slots.assign(1)
    assert slots.task_ids == (1,)


def test_a_removed_adapter_serves_its_user_and_is_gone_for_others() -> None:
    slots, freed = filled(1), list[Slot]()
    slot = slots.acquire(1)
    slots.remove(1, freed.append)
    with pytest.raises(AdapterUnknown, match="not found in cache"):
        slots.acquire(1)
    assert not freed
    slots.release(slot)
    assert freed == [slot]


def test_the_adapter_that_has_been_idle_longest_makes_room() -> None:
    slots = filled(1, 2)
    first, second = slots.acquire(1), slots.acquire(2)
    slots.release(second)
    slots.release(first)
    slots.assign(3)
    assert slots.task_ids == (1, 3), "2 was asked for later, but has been idle for longer"


def test_what_happens_to_adapters_is_counted() -> None:
    slots = filled(1, 2)
    slots.acquire(2)
    slots.assign(3)
    slots.acquire(3)
    with pytest.raises(AdapterUnknown, match="not found"):
        slots.acquire(1)
    with pytest.raises(EngineOverloaded, match="Cache is full"):
        slots.assign(1)
    assert slots.stats() == SlotStats(
        num_slots=2, num_loaded=2, num_loads=3, num_evictions=1, num_misses=1, num_refusals=1
    )


def test_a_kept_adapter_never_makes_room() -> None:
    slots = AdapterSlots(2)
    slots.assign(1, is_kept=True)
    slots.assign(2)
    slots.assign(3)
    assert slots.task_ids == (1, 3)


@pytest.mark.parametrize("is_used", [False, True])
def test_an_id_is_there_at_every_moment_of_its_replacement(is_used: bool) -> None:
    """2 of 13,446 requests were refused between the end of the old one and the new one."""
    slots, found = AdapterSlots(2), list[bool]()
    slots.assign(1)

    def ask(_: Slot) -> None:
        def acquire() -> None:
            slots.release(slots.acquire(1))
            found.append(True)

        asking.append(threading.Thread(target=acquire))
        asking[-1].start()

    asking: list[threading.Thread] = []
    users = [slots.acquire(1)] if is_used else []
    slots.assign(1, ask)
    for user in users:
        slots.release(user)
    for thread in asking:
        thread.join()
    assert found == [True]
