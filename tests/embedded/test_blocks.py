"""blocks.py: ownership, prefix reuse and eviction, by examples and against a plain model."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from compllm.embedded.blocks import BlockPool, BlockTable

SIZE = 4


def run(pool: BlockPool, key: object, tokens: list[int]) -> BlockTable:
    """Compute and commit all of these tokens."""
    table = pool.open(key, tokens)
    assert pool.reserve(table, len(tokens))
    pool.commit(table, tokens, len(tokens))
    return table


def test_a_released_prefix_is_reused_in_order() -> None:
    pool = BlockPool(8, SIZE)
    first = run(pool, "a", list(range(10)))
    blocks = first.blocks[:2]
    pool.release(first)
    second = pool.open("a", list(range(12)))
    assert second.blocks == blocks
    assert (second.num_reused, second.num_new, pool.num_reused_total) == (2, 0, 2)


def test_a_prefix_in_use_is_shared() -> None:
    pool = BlockPool(8, SIZE)
    first = run(pool, "a", list(range(8)))
    second = run(pool, "a", [*range(8), 99])
    assert second.blocks[:2] == first.blocks
    assert pool.num_used == 3


def test_the_last_token_is_always_left_to_compute() -> None:
    pool = BlockPool(8, SIZE)
    pool.release(run(pool, "a", list(range(8))))
    assert len(pool.match_prefix("a", list(range(8)))) == 1
    assert len(pool.match_prefix("a", list(range(9)))) == 2
    assert pool.match_prefix("a", []) == []


def test_adapters_do_not_share_blocks() -> None:
    pool = BlockPool(8, SIZE)
    pool.release(run(pool, "a", list(range(8))))
    assert pool.match_prefix("b", list(range(8))) == []


def test_equal_tokens_behind_another_parent_do_not_match() -> None:
    pool = BlockPool(8, SIZE)
    pool.release(run(pool, "a", [1, 1, 1, 1, 5, 5, 5, 5]))
    assert pool.match_prefix("a", [2, 2, 2, 2, 5, 5, 5, 5, 0]) == []
    assert pool.match_prefix("a", [5, 5, 5, 5, 0]) == []


def test_generated_tokens_are_reused_too() -> None:
    pool = BlockPool(8, SIZE)
    tokens = [1, 2, 3]
    table = run(pool, "a", tokens)
    for token in range(10, 16):
        tokens.append(token)
        assert pool.reserve(table, len(tokens))
        pool.commit(table, tokens, len(tokens))
    pool.release(table)
    assert len(pool.match_prefix("a", [*tokens, 0])) == 2


def test_uncomputed_tokens_are_not_registered() -> None:
    pool = BlockPool(8, SIZE)
    table = pool.open("a", list(range(8)))
    assert pool.reserve(table, 8)
    pool.commit(table, list(range(8)), 7)
    assert len(pool.match_prefix("a", list(range(9)))) == 1


def test_content_computed_twice_at_once_is_held_once() -> None:
    pool = BlockPool(8, SIZE)
    tokens = list(range(9))
    tables = [pool.open("a", tokens) for _ in range(2)]
    for table in tables:
        assert pool.reserve(table, 9)
    assert pool.num_used == 6
    for table in tables:
        pool.commit(table, tokens, 9)
    assert tables[0].blocks[:2] == tables[1].blocks[:2]
    assert tables[0].blocks[2] != tables[1].blocks[2]
    assert pool.num_used == 4


def test_the_least_recently_used_leaf_is_evicted_first() -> None:
    pool = BlockPool(4, SIZE)
    pool.release(run(pool, "a", [1] * 8))
    pool.release(run(pool, "a", [2] * 8))
    pool.release(pool.open("a", [1] * 9))  # used again
    table = pool.open("b", [])
    assert pool.reserve(table, SIZE)
    assert len(pool.match_prefix("a", [1] * 9)) == 2
    assert len(pool.match_prefix("a", [2] * 9)) == 1


def test_blocks_in_use_are_never_evicted() -> None:
    pool = BlockPool(2, SIZE)
    run(pool, "a", [1] * 8)
    table = pool.open("b", [])
    assert not pool.reserve(table, 1)
    assert (table.blocks, table.num_new) == ([], 0)


def test_a_failed_reservation_changes_nothing() -> None:
    pool = BlockPool(3, SIZE)
    pool.release(run(pool, "a", [1] * 8))
    table = pool.open("b", [])
    assert not pool.reserve(table, 13)
    assert (pool.num_available, pool.num_cached) == (3, 2)


def test_a_dropped_adapter_leaves_no_cached_blocks() -> None:
    pool = BlockPool(8, SIZE)
    pool.release(run(pool, "a", [1] * 8))
    running = run(pool, "a", [2] * 8)
    pool.drop("a")
    assert pool.num_cached == 0
    assert pool.match_prefix("a", [1] * 9) == []
    pool.reserve(running, 12)
    pool.commit(running, [2] * 12, 12)
    pool.release(running)
    assert (pool.num_used, pool.num_cached) == (0, 0)


def test_a_reloaded_adapter_does_not_see_its_predecessors_blocks() -> None:
    pool = BlockPool(8, SIZE)
    old = run(pool, "a", [1] * 4)
    pool.drop("a")
    new = run(pool, "a", [1] * 4)
    assert new.blocks != old.blocks
    pool.reserve(old, 8)
    pool.commit(old, [1] * 8, 8)
    assert len(pool.match_prefix("a", [1] * 9)) == 1


def test_releasing_twice_is_harmless() -> None:
    pool = BlockPool(2, SIZE)
    table = run(pool, "a", [1] * 5)
    pool.release(table)
    pool.release(table)
    assert pool.num_used == 0


@pytest.mark.parametrize(("num_blocks", "size"), [(0, 4), (4, 0)])
def test_an_empty_pool_is_refused(num_blocks: int, size: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BlockPool(num_blocks, size)


class PoolMachine(RuleBasedStateMachine):
    """Random requests against a memory that records what was written into each block."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[tuple[str, list[int], BlockTable]] = []
        self.memory: dict[tuple[int, int], tuple[object, ...]] = {}
        self.epoch = {"a": 0, "b": 0}
        self.epochs_of: dict[int, int] = {}
        self.computed: set[tuple[str, tuple[int, ...]]] = set()

    @initialize(num_blocks=st.integers(1, 9), size=st.integers(1, 3))
    def make(self, num_blocks: int, size: int) -> None:
        self.pool = BlockPool(num_blocks, size)
        self.size = size

    def content(self, key: str, epoch: int, tokens: list[int], position: int) -> tuple[object, ...]:
        """What a KV slot depends on: the adapter and all tokens up to there."""
        return (key, epoch, *tokens[: position + 1])

    def compute(self, index: int, first: int) -> None:
        """Write every position from `first`, then let the pool register."""
        key, tokens, table = self.requests[index]
        epoch = self.epochs_of[id(table)]
        for position in range(first, len(tokens)):
            slot = (table.blocks[position // self.size], position % self.size)
            self.memory[slot] = self.content(key, epoch, tokens, position)
        self.pool.commit(table, tokens, len(tokens))
        self.computed.add((key, tuple(tokens)))

    @rule(key=st.sampled_from("ab"), tokens=st.lists(st.integers(0, 1), min_size=1, max_size=12))
    def start(self, key: str, tokens: list[int]) -> None:
        table = self.pool.open(key, tokens)
        num_cached = len(table.blocks) * self.size
        assert num_cached < len(tokens)
        if not self.pool.reserve(table, len(tokens)):
            self.pool.release(table)
            return
        self.requests.append((key, list(tokens), table))
        self.epochs_of[id(table)] = self.epoch[key]
        self.compute(len(self.requests) - 1, num_cached)

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), token=st.integers(0, 1))
    def decode(self, data: st.DataObject, token: int) -> None:
        index = data.draw(st.integers(0, len(self.requests) - 1))
        _, tokens, table = self.requests[index]
        if self.pool.reserve(table, len(tokens) + 1):
            tokens.append(token)
            self.compute(index, len(tokens) - 1)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.requests) - 1))
        self.pool.release(self.requests.pop(index)[2])

    @rule(key=st.sampled_from("ab"))
    def swap_adapter(self, key: str) -> None:
        self.pool.drop(key)
        self.epoch[key] += 1

    @invariant()
    def every_request_reads_its_own_content(self) -> None:
        for key, tokens, table in self.requests:
            for position in range(len(tokens)):
                slot = (table.blocks[position // self.size], position % self.size)
                expected = self.content(key, self.epochs_of[id(table)], tokens, position)
                assert self.memory[slot] == expected

    @invariant()
    def references_and_counts_add_up(self) -> None:
        self.pool.check(table for _, _, table in self.requests)
        held = {block for _, _, table in self.requests for block in table.blocks}
        assert len(held) == self.pool.num_used

    @invariant()
    def a_block_still_being_filled_has_one_owner(self) -> None:
        held = Counter(block for _, _, table in self.requests for block in table.blocks)
        for _, tokens, table in self.requests:
            for block in table.blocks[len(tokens) // self.size :]:
                assert held[block] == 1

    @invariant()
    def cached_chains_are_reachable_and_true(self) -> None:
        """Whatever was computed once is found as it was, and nothing else is kept."""
        found = set()
        for key, tokens in self.computed:
            for place, block in enumerate(self.pool.match_prefix(key, [*tokens, 0])):
                last = (place + 1) * self.size - 1
                expected = self.content(key, self.epoch[key], list(tokens), last)
                assert self.memory[block, self.size - 1] == expected
                found.add(block)
        held = {block for _, _, table in self.requests for block in table.blocks}
        assert len(found - held) == self.pool.num_cached


PoolMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True
)
TestPool = PoolMachine.TestCase
