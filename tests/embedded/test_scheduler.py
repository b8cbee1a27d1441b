"""Who computes how many tokens in a step, and which blocks that takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from compllm.embedded.blocks import BlockPool
from compllm.embedded.request import EngineRequest
from compllm.embedded.sampling import SamplerState
from compllm.embedded.scheduler import Scheduler
from compllm.embedded.sequence import Sequence
from compllm.embedded.slots import Slot

BLOCK = 4
BASE, EXPERT = Slot(0, None, 0), Slot(1, 7, 1)


def sequence(handle: int, length: int, max_tokens: int = 4, slot: Slot = BASE) -> Sequence:
    """No two of different handles share a prefix."""
    request = EngineRequest(tuple(range(100 * handle, 100 * handle + length)), max_tokens)
    return Sequence(
        handle=handle,
        request=request,
        on_event=lambda event: None,
        slot=slot,
        sampler=SamplerState(request.sampling, request.input_ids),
        stops=None,
        tokens=list(request.input_ids),
        arrival_ns=0,
    )


def scheduler(
    *waiting: Sequence,
    blocks: int = 64,
    batch: int = 8,
    budget: int = 16,
    is_prefix_reused: bool = True,
) -> tuple[Scheduler, BlockPool]:
    pool = BlockPool(blocks, BLOCK)
    made = Scheduler(
        pool, max_batch_size=batch, max_num_tokens=budget, is_prefix_reused=is_prefix_reused
    )
    made.waiting += waiting
    made.admit()
    return made, pool


def step(scheduler: Scheduler) -> dict[int, int]:
    """Compute one step; each sequence whose tokens are all computed gets one more. Tokens by
    handle."""
    plan = scheduler.plan()
    scheduler.commit(plan)
    for each, _ in plan:
        if each.num_computed == len(each.tokens) and each.push(5) is not None:
            scheduler.remove(each)
    scheduler.admit()
    return {each.handle: count for each, count in plan}


def test_decodes_come_before_prefills_which_share_the_rest_of_the_budget() -> None:
    first = sequence(1, 3)
    made, _ = scheduler(first, budget=10)
    assert step(made) == {1: 3}
    made.waiting += [sequence(2, 6), sequence(3, 9)]
    made.admit()
    assert step(made) == {1: 1, 2: 6, 3: 3}
    assert step(made) == {1: 1, 2: 1, 3: 6}


def test_neighbours_in_a_step_have_the_same_adapter() -> None:
    slots = (EXPERT, BASE, EXPERT, BASE)
    made, _ = scheduler(*(sequence(k, 2, slot=slot) for k, slot in enumerate(slots)))
    assert [each.slot.index for each, _ in made.plan()] == [0, 0, 1, 1]


def test_who_does_not_fit_yet_waits_and_holds_back_those_behind() -> None:
    made, _ = scheduler(sequence(1, 8, 8), sequence(2, 8, 8), sequence(3, 1, 1), blocks=7)
    assert [each.handle for each in made.running] == [1]
    made.remove(made.running[0])
    made.admit()
    assert [each.handle for each in made.running] == [2, 3]


def test_batch_size_bounds_what_runs() -> None:
    made, _ = scheduler(*(sequence(k, 1) for k in range(5)), batch=3)
    assert len(made.running) == 3


def test_computed_prefix_is_reused_by_the_same_adapter_alone() -> None:
    made, _ = scheduler(sequence(1, 9))
    step(made)
    again, other = sequence(1, 9), sequence(1, 9, slot=EXPERT)
    made.waiting += [again, other]
    made.admit()
    assert (again.num_computed, other.num_computed) == (8, 0)


def test_without_reuse_every_block_is_free_in_the_end() -> None:
    made, pool = scheduler(sequence(1, 9), sequence(1, 9), is_prefix_reused=False)
    while made.running:
        step(made)
    assert (pool.num_used, pool.num_cached) == (0, 0)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12)), min_size=1, max_size=12),
    st.integers(8, 20),
    st.integers(4, 12),
    st.booleans(),
)
def test_whatever_comes_ends_with_all_it_asked_for(
    sizes: list[tuple[int, int]], blocks: int, budget: int, is_prefix_reused: bool
) -> None:
    """Blocks promised at admission are always there, though all of them may be in use."""
    everybody = [sequence(k % 3, *size) for k, size in enumerate(sizes)]
    made, pool = scheduler(
        *everybody, blocks=blocks, batch=4, budget=budget, is_prefix_reused=is_prefix_reused
    )
    while made.running:
        assert sum(step(made).values()) <= budget
    assert not made.waiting
    assert pool.num_used == 0
    assert [each.num_output for each in everybody] == [size[1] for size in sizes]


def test_waiting_for_room_counts_no_reuse() -> None:
    """Each step tries to admit the waiting: what it would reuse was once counted each time."""
    first, blocker = sequence(1, 9), sequence(2, 4, max_tokens=20)
    again = sequence(1, 9, max_tokens=8)
    made, pool = scheduler(first, blocks=10)
    while made.running:
        step(made)
    made.waiting += (blocker, again)
    made.admit()
    assert made.running == [blocker]
    step(made)
    step(made)
    assert pool.num_reused_total == 0
    while made.running:
        step(made)
    assert pool.num_reused_total == again.table.num_reused == 2
