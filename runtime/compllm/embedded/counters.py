"""What the engine counts of its steps: their number, kind, time and adapters.

`executor.py` counts each step here; `EngineStats` shows the counters to others.
"""

from __future__ import annotations

import time
from collections import Counter

from compllm.embedded.request import EngineStats, StepTimes
from compllm.embedded.scheduler import StepPlan


class StepCounters:
    """Counters that rise from the start of the engine. The engine's thread alone changes them."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.num_tokens = 0  # generated
        self.num_failures = 0  # of the engine's thread
        self._num_mixed = self._max_adapters = self._max_cancel_steps = 0
        self._histogram: Counter[int] = Counter()
        # By decodes, and whether there was prefill beside: steps, nanoseconds, tokens of prefill.
        self._step_times: dict[tuple[int, bool], tuple[int, int, int]] = {}
        self.since_ns = 0  # what the next step takes counts from here

    def restart_clock(self) -> None:
        """The time up to now belongs to no step."""
        self.since_ns = time.monotonic_ns()

    def count_step(self, plan: StepPlan) -> None:
        """Count a step that has ended."""
        self.num_steps += 1
        self._histogram[len(plan)] += 1
        num_adapters = len({sequence.slot.index for sequence, _ in plan})
        self._max_adapters = max(self._max_adapters, num_adapters)
        self._num_mixed += num_adapters > 1
        counts = [count for _, count in plan]
        now = time.monotonic_ns()
        num_decodes = counts.count(1)
        kind = num_decodes, num_decodes < len(counts)
        num_steps, taken_ns, num_tokens = self._step_times.get(kind, (0, 0, 0))
        self._step_times[kind] = (
            num_steps + 1,
            taken_ns + now - self.since_ns,
            num_tokens + sum(counts) - num_decodes,
        )
        self.since_ns = now

    def count_cancel(self, asked_at_step: int) -> None:
        """A request ends that was cancelled after this number of steps."""
        self._max_cancel_steps = max(self._max_cancel_steps, self.num_steps - asked_at_step)

    def stats(self) -> EngineStats:
        """The counters, and nothing else set. Safe from any thread."""
        return EngineStats(
            num_steps=self.num_steps,
            num_tokens_generated=self.num_tokens,
            num_mixed_steps=self._num_mixed,
            max_adapters_in_step=self._max_adapters,
            num_failures=self.num_failures,
            batch_histogram=tuple(sorted(self._histogram.copy().items())),
            step_times=tuple(
                StepTimes(*kind, num_steps, 1e-9 * taken_ns, num_tokens)
                for kind, (num_steps, taken_ns, num_tokens) in sorted(
                    self._step_times.copy().items()
                )
            ),
            max_steps_to_cancel=self._max_cancel_steps,
        )
