"""Admission: who gets a slot, in which order, and that none is ever lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from compllm.errors import BackendUnavailable, ConfigError
from compllm.scheduling.admission import Admission


async def turn() -> None:
    """Let every task that can go on do so; there is no time in it."""
    for _ in range(5):
        await asyncio.sleep(0)


async def hold(admission: Admission, *, query: int, node: int = 1, path: float = 1.0, log=None):
    """Hold a slot for one turn and note who had it."""
    async with admission.slot("base", query, node, path):
        if log is not None:
            log.append((query, node))
        await asyncio.sleep(0)


class Held:
    """A slot of the engine `base` that stays taken until `free` is called."""

    def __init__(self, admission: Admission) -> None:
        self._slot = admission.slot("base", 0, 0, 0.0)

    async def __aenter__(self) -> Callable[[], Awaitable[None]]:
        await self._slot.__aenter__()
        self.is_free = False
        return self.free

    async def free(self) -> None:
        self.is_free = True
        await self._slot.__aexit__(None, None, None)

    async def __aexit__(self, *exc: object) -> None:
        if not self.is_free:
            await self.free()


async def test_a_free_engine_is_entered_at_once():
    admission = Admission({"base": 1})
    async with admission.slot("base", 1, 1, 1.0):
        assert admission.loads()["base"].num_in_flight == 1
    load = admission.loads()["base"]
    assert (load.num_in_flight, load.num_admitted, load.num_waited) == (0, 1, 0)


async def test_no_more_than_the_limit_are_in_flight():
    admission = Admission({"base": 3})
    seen = []

    async def request(query: int) -> None:
        async with admission.slot("base", query, 1, 1.0):
            seen.append(admission.loads()["base"].num_in_flight)
            await asyncio.sleep(0)

    await asyncio.gather(*(request(query) for query in range(20)))
    assert max(seen) == 3
    assert admission.loads()["base"].num_in_flight == 0


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("oldest_query_first", [(1, 2), (1, 3), (1, 1), (2, 1)]),
        ("fifo", [(2, 1), (1, 1), (1, 3), (1, 2)]),
        ("deepest_first", [(2, 1), (1, 2), (1, 3), (1, 1)]),
        ("least_remaining_work", [(1, 1), (1, 3), (1, 2), (2, 1)]),
    ],
)
async def test_the_policy_decides_who_is_woken(policy, order):
    admission = Admission({"base": 1}, policy)
    log: list[tuple[int, int]] = []
    async with Held(admission) as free, asyncio.TaskGroup() as tasks:
        for query, node, path in [(2, 1, 9.0), (1, 1, 2.0), (1, 3, 5.0), (1, 2, 5.0)]:
            tasks.create_task(hold(admission, query=query, node=node, path=path, log=log))
            await turn()
        await free()
    assert log == order


async def test_remaining_work_of_the_query_comes_before_the_path_of_the_node():
    admission = Admission({"base": 1}, "least_remaining_work")
    log = []

    async def request(query: int, path: float, work: float) -> None:
        async with admission.slot("base", query, 1, path, work):
            log.append(query)

    async with Held(admission) as free, asyncio.TaskGroup() as tasks:
        tasks.create_task(request(1, path=1.0, work=9.0))
        tasks.create_task(request(2, path=5.0, work=5.0))
        await turn()
        await free()
    assert log == [2, 1]


@pytest.mark.parametrize(
    ("policy", "rounds_waited"), [("oldest_query_first", 0), ("deepest_first", 50)]
)
async def test_an_old_short_query_is_starved_only_by_longest_path_first(policy, rounds_waited):
    """One slot, and in each round a new query with a longer path joins the queue."""
    admission = Admission({"base": 1}, policy)
    log: list[tuple[int, int]] = []
    async with Held(admission) as free, asyncio.TaskGroup() as tasks:
        tasks.create_task(hold(admission, query=0, path=1.0, log=log))
        for query in range(1, 51):
            tasks.create_task(hold(admission, query=query, path=9.0, log=log))
        await turn()
        await free()
    assert log.index((0, 1)) == rounds_waited


async def test_engines_do_not_wait_for_each_other():
    admission = Admission({"base": 1, "tensorrt_llm_biology": 1})
    async with Held(admission), admission.slot("tensorrt_llm_biology", 1, 1, 1.0):
        assert [load.num_in_flight for load in admission.loads().values()] == [1, 1]


async def test_a_newcomer_does_not_overtake_those_who_wait():
    admission = Admission({"base": 1})
    log: list[tuple[int, int]] = []
    async with Held(admission) as free, asyncio.TaskGroup() as tasks:
        tasks.create_task(hold(admission, query=1, log=log))
        await turn()
        await free()
        tasks.create_task(hold(admission, query=2, log=log))
    assert log == [(1, 1), (2, 1)]


async def test_an_error_inside_gives_the_slot_back():
    admission = Admission({"base": 1})
    with pytest.raises(RuntimeError, match="engine broke"):
        async with admission.slot("base", 1, 1, 1.0):
            raise RuntimeError("engine broke")
    assert admission.loads()["base"].num_in_flight == 0


async def test_a_cancelled_waiter_leaves_the_queue():
    admission = Admission({"base": 1})
    async with Held(admission):
        waiter = asyncio.create_task(hold(admission, query=1))
        await turn()
        assert admission.loads()["base"].num_waiting == 1
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert admission.loads()["base"].num_waiting == 0
    assert admission.loads()["base"].num_in_flight == 0


async def test_a_winner_cancelled_before_it_runs_passes_its_slot_on():
    admission = Admission({"base": 1})
    log: list[tuple[int, int]] = []
    async with Held(admission) as free:
        winner = asyncio.create_task(hold(admission, query=1, log=log))
        next_one = asyncio.create_task(hold(admission, query=2, log=log))
        await turn()
        await free()
        winner.cancel()
        await next_one
    assert winner.cancelled()
    assert log == [(2, 1)]
    assert admission.loads()["base"].num_in_flight == 0


async def test_a_slot_is_not_given_to_a_waiter_cancelled_in_the_same_turn():
    admission = Admission({"base": 1})
    log: list[tuple[int, int]] = []
    async with Held(admission) as free:
        cancelled = asyncio.create_task(hold(admission, query=1, log=log))
        next_one = asyncio.create_task(hold(admission, query=2, log=log))
        await turn()
        cancelled.cancel()
        await free()
        await next_one
    assert cancelled.cancelled()
    assert log == [(2, 1)]
    assert admission.loads()["base"].num_in_flight == 0


async def test_a_full_queue_refuses_and_says_for_whom():
    admission = Admission({"base": 1}, max_waiting=1)
    async with Held(admission) as free:
        waiter = asyncio.create_task(hold(admission, query=1))
        await turn()
        with pytest.raises(BackendUnavailable, match="1 requests wait already, 1 may") as caught:
            await hold(admission, query=2, node=7)
        assert caught.value.node_id == 7
        await free()
        await waiter
    assert admission.loads()["base"].num_refused == 1


async def test_without_a_queue_a_free_engine_still_answers():
    admission = Admission({"base": 1}, max_waiting=0)
    await hold(admission, query=1)
    async with Held(admission):
        with pytest.raises(BackendUnavailable):
            await hold(admission, query=2)


async def test_loads_count_those_who_waited_and_for_how_long():
    admission = Admission({"base": 1})
    async with Held(admission) as free:
        waiter = asyncio.create_task(hold(admission, query=1))
        await turn()
        await free()
        await waiter
    load = admission.loads()["base"]
    assert (load.limit, load.num_admitted, load.num_waited) == (1, 2, 1)
    assert 0 < load.max_wait_s == load.total_wait_s


def test_an_unknown_engine_is_named_beside_the_known_ones():
    with pytest.raises(ConfigError, match="'poetry' has no in-flight limit; there are base, bio"):
        Admission({"base": 1, "bio": 2}).slot("poetry", 1, 1, 1.0)


@pytest.mark.parametrize(
    ("limits", "policy", "max_waiting", "error"),
    [
        ({}, "fifo", 1, "each engine needs at least 1"),
        ({"base": 0}, "fifo", 1, "each engine needs at least 1"),
        ({"base": 1}, "luck", 1, "policy 'luck' is unknown; there are oldest_query_first, fifo"),
        ({"base": 1}, "fifo", -1, "max_waiting is -1, allowed are 0 to"),
        ({"base": 1}, "fifo", 2**30, "max_waiting is 1073741824, allowed are 0 to"),
    ],
)
def test_bad_settings_are_refused(limits, policy, max_waiting, error):
    with pytest.raises(ConfigError, match=error):
        Admission(limits, policy, max_waiting=max_waiting)


async def test_a_waiter_can_be_moved_up_and_still_leaves_the_queue_when_cancelled():
    admission = Admission({"base": 1})
    log: list[tuple[int, int]] = []
    slot = admission.slot("base", 9, 1, 1.0)

    async def late() -> None:
        async with slot:
            log.append(slot.request[:2])

    async with Held(admission) as free:
        moved = asyncio.create_task(late())
        other = asyncio.create_task(hold(admission, query=5, log=log))
        await turn()
        slot.promote(admission.slot("base", 2, 3, 1.0))
        slot.promote(admission.slot("base", 7, 4, 9.0))  # further behind: nothing to take
        await free()
        await asyncio.gather(moved, other)
    assert log == [(2, 3), (5, 1)]

    slot = admission.slot("base", 9, 1, 1.0)
    async with Held(admission):
        moved = asyncio.create_task(late())
        await turn()
        slot.promote(admission.slot("base", 2, 1, 1.0))
        moved.cancel()
        await asyncio.gather(moved, return_exceptions=True)
        assert admission.load("base").num_waiting == 0
    assert admission.load("base").num_in_flight == 0
    admission.check()


async def test_who_was_woken_or_never_waited_is_not_moved():
    admission = Admission({"base": 1})
    slot = admission.slot("base", 9, 1, 1.0)
    slot.promote(admission.slot("base", 1, 1, 1.0))
    async with slot:
        slot.promote(admission.slot("base", 1, 1, 1.0))
    async with Held(admission) as free:
        waiter = asyncio.create_task(slot.__aenter__())
        await turn()
        await free()  # woken, but it has not run since
        slot.promote(admission.slot("base", 1, 1, 1.0))
        await waiter
    await slot.__aexit__(None, None, None)
    assert slot.request.query_seq == 9
    assert admission.is_idle


async def test_other_policies_know_no_earlier_query():
    admission = Admission({"base": 1}, "fifo")
    slot = admission.slot("base", 9, 1, 1.0)
    async with Held(admission) as free:
        waiter = asyncio.create_task(slot.__aenter__())
        await turn()
        slot.promote(admission.slot("base", 1, 1, 1.0))
        assert slot.request.query_seq == 9
        await free()
        await waiter
    await slot.__aexit__(None, None, None)


async def test_deepest_first_moves_up_by_the_path():
    admission = Admission({"base": 1}, "deepest_first")
    slot = admission.slot("base", 2, 1, 1.0)
    async with Held(admission) as free:
        waiter = asyncio.create_task(slot.__aenter__())
        await turn()
        slot.promote(admission.slot("base", 1, 1, 1.0))
        assert slot.request.query_seq == 1  # as deep, and older
        slot.promote(admission.slot("base", 9, 1, 3.0))
        assert slot.request.query_seq == 9
        slot.promote(admission.slot("base", 1, 1, 2.0))
        assert slot.request.query_seq == 9
        await free()
        await waiter
    await slot.__aexit__(None, None, None)


async def test_limits_can_be_replaced_while_nothing_is_in_flight():
    admission = Admission({"base": 64, "bio": 64}, max_waiting=7)
    admission.set_limits({"base": 2})
    assert [load.limit for load in admission.loads().values()] == [2, 64]
    async with Held(admission):
        assert not admission.is_idle
    with pytest.raises(ConfigError, match="at least 1"):
        admission.set_limits({"bio": 0})
    assert admission.load("bio").limit == 64


@pytest.mark.parametrize("seed", range(5))
async def test_no_slot_is_lost_whatever_is_cancelled_when(seed):
    """Hundreds of requests of which a third are cancelled at random turns, some twice."""
    rng = random.Random(seed)
    admission = Admission({"base": 2, "bio": 1}, max_waiting=400)
    ended = []

    async def request(query: int, engine: str, num_turns: int) -> None:
        async with admission.slot(engine, query, 1, rng.random()):
            load = admission.loads()[engine]
            assert load.num_in_flight <= load.limit
            for _ in range(num_turns):
                await asyncio.sleep(0)
        ended.append(query)

    tasks = [
        asyncio.create_task(request(query, rng.choice(["base", "bio"]), rng.randrange(4)))
        for query in range(300)
    ]
    victims = set()
    while len(victims) < 100:
        victim = rng.randrange(300)
        victims.add(victim)
        tasks[victim].cancel()
        if rng.random() < 0.5:
            await asyncio.sleep(0)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(result is None or isinstance(result, asyncio.CancelledError) for result in results)
    assert set(range(300)) - victims <= set(ended)
    for load in admission.loads().values():
        assert (load.num_in_flight, load.num_waiting) == (0, 0)
    admission.check()
