"""Which sequences compute how many tokens in the next step, and on which blocks of the cache.

Pure bookkeeping between `executor.py`, whose thread alone calls it, and `blocks.py`. A sequence is
admitted only when its longest possible course fits into the cache beside those admitted before
(TensorRT-LLM's guaranteed_no_evict), so that nothing is ever preempted.
"""

from __future__ import annotations

from collections import deque

from compllm.embedded.blocks import BlockPool
from compllm.embedded.sequence import Sequence

StepPlan = list[tuple[Sequence, int]]  # (who, how many tokens)


class Scheduler:
    """Sequences that wait and that run. Not thread-safe."""

    def __init__(
        self, pool: BlockPool, *, max_batch_size: int, max_num_tokens: int, is_prefix_reused: bool
    ) -> None:
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._pool = pool
        self._max_batch_size = max_batch_size
        self._max_num_tokens = max_num_tokens
        self._is_prefix_reused = is_prefix_reused
        self._promised = 0  # blocks that running sequences may still ask for

    def admit(self) -> None:
        """First come, first served: who does not fit yet holds back those behind."""
        while self.waiting and len(self.running) < self._max_batch_size:
            sequence = self.waiting[0]
            max_blocks = self._pool.num_blocks_for(
                len(sequence.tokens) + sequence.request.max_tokens
            )
            table = self._pool.open(self._key(sequence), sequence.tokens)
            needed = max_blocks - len(table.blocks)
            if needed > self._pool.num_available - self._promised:
                self._pool.give_up(table)
                return
            self._promised += needed
            sequence.table, sequence.max_blocks = table, max_blocks
            sequence.num_computed = len(table.blocks) * self._pool.tokens_per_block
            self.running.append(self.waiting.popleft())

    def plan(self) -> StepPlan:
        """Every decode computes one token, prefills what is left of the budget. Reserves blocks."""
        budget = self._max_num_tokens
        plan: StepPlan = []
        prefills = []
        for sequence in self.running:
            if sequence.late_logits is not None:
                continue  # its last token is still to be sampled
            if sequence.num_computed + 1 == len(sequence.tokens):
                plan.append((sequence, 1))
                budget -= 1
            else:
                prefills.append(sequence)
        for sequence in prefills:
            count = min(len(sequence.tokens) - sequence.num_computed, budget)
            if count <= 0:
                break
            plan.append((sequence, count))
            budget -= count
        for sequence, count in plan:
            self._grow(sequence, sequence.num_computed + count)
        # Neighbours with one adapter share its memory reads.
        plan.sort(key=lambda item: item[0].slot.index)
        return plan

    def commit(self, plan: StepPlan) -> None:
        """The plan's tokens were computed: others may reuse the blocks that are full now."""
        for sequence, count in plan:
            sequence.num_computed += count
            if self._is_prefix_reused:
                self._pool.commit(sequence.table, sequence.tokens, sequence.num_computed)

    def remove(self, sequence: Sequence) -> None:
        """It has ended: its blocks are free, or cached for others."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._promised -= sequence.max_blocks - len(sequence.table.blocks)
        else:
            self.waiting.remove(sequence)
        self._pool.release(sequence.table)
        if not self._is_prefix_reused:
            self._pool.drop(self._key(sequence))

    def _key(self, sequence: Sequence) -> tuple[int | str, int]:
        return sequence.slot.key if self._is_prefix_reused else ("unshared", sequence.handle)

    def _grow(self, sequence: Sequence, num_tokens: int) -> None:
        before = len(sequence.table.blocks)
        if not self._pool.reserve(sequence.table, num_tokens):
            raise AssertionError("admission promised these blocks")
        self._promised -= len(sequence.table.blocks) - before
