"""Which adapter is in which slot of the engine, who uses it, and what may make room.

A slot outlives its name: a removed or replaced adapter keeps its slot until its last request has
ended. The executor's book of adapters; the weights themselves are in `runner.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from compllm.errors import AdapterUnknown, EngineOverloaded


@dataclass(slots=True, eq=False)
class Slot:
    """One place for an adapter. Index 0 is the base."""

    index: int
    task_id: int | None
    generation: int  # separates what was loaded one after another under one task id
    num_users: int = 0
    last_used: int = 0
    is_retired: bool = False  # to be freed when its last request ends
    is_kept: bool = False  # never evicted

    @property
    def key(self) -> tuple[int, int]:
        """What the KV cache knows this adapter by: never used for two contents."""
        return self.index, self.generation


@dataclass(frozen=True, slots=True)
class SlotStats:
    """The slots now, and what happened to them since the start."""

    num_slots: int = 0
    num_loaded: int = 0  # adapters that can be asked for now
    num_loads: int = 0
    num_evictions: int = 0  # an idle adapter made room for another
    num_misses: int = 0  # asked for and not there
    num_refusals: int = 0  # every slot was in use


class AdapterSlots:
    """Slots 1 .. num_slots by task id, and slot 0 for requests without one. Thread-safe.

    The error texts are TensorRT-LLM's own, which clients match on.
    """

    def __init__(self, num_slots: int) -> None:
        self._lock = threading.RLock()  # `on_free` is called with it
        self._free = list(range(num_slots, 0, -1))
        self._base = Slot(0, None, 0)
        self._by_task: dict[int, Slot] = {}
        self._clock = 0
        self._num_slots = num_slots
        self._num_loads = self._num_evictions = self._num_misses = self._num_refusals = 0
        self._on_free: Callable[[Slot], None] = lambda slot: None

    @property
    def task_ids(self) -> tuple[int, ...]:
        """In the order they were loaded."""
        with self._lock:
            return tuple(self._by_task)

    def stats(self) -> SlotStats:
        with self._lock:
            return SlotStats(
                self._num_slots,
                len(self._by_task),
                self._num_loads,
                self._num_evictions,
                self._num_misses,
                self._num_refusals,
            )

    def acquire(self, task_id: int | None) -> Slot:
        """The slot for one more request. Raises AdapterUnknown for an id that is not loaded."""
        with self._lock:
            slot = self._base if task_id is None else self._by_task.get(task_id)
            if slot is None:
                self._num_misses += 1
                raise AdapterUnknown(
                    f"LoRA task {task_id} not found in cache. Please send LoRA weights with request"
                )
            slot.num_users += 1
            self._clock += 1
            slot.last_used = self._clock
            return slot

    def release(self, slot: Slot) -> None:
        """A request has ended."""
        with self._lock:
            slot.num_users -= 1
            self._clock += 1
            slot.last_used = self._clock  # idle since now: the longest idle one makes room first
            if slot.is_retired and slot.num_users == 0:
                self._give_back(slot)

    def assign(
        self,
        task_id: int,
        on_free: Callable[[Slot], None] | None = None,
        *,
        is_kept: bool = False,
    ) -> Slot:
        """A slot for a new adapter: a free one, else that of the least recently used idle adapter.

        An adapter of this id that is there is retired first; no other thread sees the id missing
        meanwhile. `on_free` is called, on this or a later thread that releases, for each slot that
        becomes free. is_kept: it never makes room for others. Raises EngineOverloaded when all
        slots are in use.
        """
        if on_free is not None:
            self._on_free = on_free
        with self._lock:
            replaced = self._by_task.get(task_id)
            idle = [
                slot
                for slot in self._by_task.values()
                if slot.num_users == 0 and not slot.is_kept and slot is not replaced
            ]
            is_replaced_idle = replaced is not None and replaced.num_users == 0
            if not self._free and not is_replaced_idle and not idle:
                self._num_refusals += 1
                raise EngineOverloaded("Cache is full. There are no done tasks to evict")
            leaving = [replaced] if replaced is not None else []
            if not self._free and not is_replaced_idle:
                leaving.append(min(idle, key=lambda s: s.last_used))
                self._num_evictions += 1
            for slot in leaving:
                self._retire(slot)
                if slot.num_users == 0:
                    self._give_back(slot)
            self._clock += 1
            slot = Slot(
                self._free.pop(), task_id, self._clock, last_used=self._clock, is_kept=is_kept
            )
            self._num_loads += 1
            self._by_task[task_id] = slot
            return slot

    def remove(self, task_id: int, on_free: Callable[[Slot], None] | None = None) -> None:
        """Raises AdapterUnknown for an id that is not loaded."""
        if on_free is not None:
            self._on_free = on_free
        with self._lock:
            slot = self._by_task.get(task_id)
            if slot is None:
                raise AdapterUnknown(f"adapter {task_id} is not loaded")
            self._retire(slot)
            if slot.num_users == 0:
                self._give_back(slot)

    def _retire(self, slot: Slot) -> None:
        slot.is_retired = True
        assert slot.task_id is not None
        del self._by_task[slot.task_id]

    def _give_back(self, slot: Slot) -> None:
        self._on_free(slot)
        self._free.append(slot.index)
