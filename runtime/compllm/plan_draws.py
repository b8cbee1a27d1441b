"""Other plans, where the generator is not sure of the one that it writes. Part of decompose.

The greedy plan takes the likeliest token each time. One odd token early on can still make the whole
plan less likely than another. When the greedy plan's probability falls below 0.3, other plans are
drawn at temperature 1 while it is written. The plan with the highest probability is used. A draw
stops when its probability falls below that of a finished plan. The seeds of the draws are fixed, so
the same question gets the same plan.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from compllm.errors import BackendError, PlanError
from compllm.types import Plan

UNSURE = math.log(0.3)  # of a whole plan: one above it is kept


class LessLikely(Exception):
    """A plan that is being written is less likely than one that is whole."""


class PlanDraws:
    """Draws `count` plans while the greedy one is written. `aclose` ends those that still run.

    write: writes the plan of a draw's number (from 1). It calls its second argument with each new
    natural log-probability, and does not catch the LessLikely that this raises. A draw that raises
    PlanError, BackendError or TimeoutError is left out.
    """

    def __init__(
        self, count: int, write: Callable[[int, Callable[[Sequence[float]], None]], Awaitable[Plan]]
    ) -> None:
        self._count = count
        self._write = write
        self._tasks: list[asyncio.Task[None]] = []
        self._greedy_total = 0.0
        self._best: Plan | None = None
        self._best_total = -math.inf

    async def aclose(self) -> None:
        """Cancel the draws that still run, and wait for their end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def watch(self, log_probs: Sequence[float]) -> None:
        """New tokens of the greedy plan: the draws start once it is unsure."""
        self._greedy_total += sum(log_probs)
        if self._greedy_total < UNSURE and not self._tasks:
            self._tasks = [
                asyncio.create_task(self._draw(number)) for number in range(1, self._count + 1)
            ]

    async def likeliest(self, greedy: Plan | None, deadline: float) -> Plan | None:
        """The likeliest of the greedy plan and the draws, or None where there is no plan.

        greedy: None where it broke a rule. deadline: the end of the draws, in seconds of the
        loop's clock.
        """
        if greedy is not None and self._greedy_total >= self._best_total:
            self._best, self._best_total = greedy, self._greedy_total
        if self._tasks:
            left_s = deadline - asyncio.get_running_loop().time()
            await asyncio.wait(self._tasks, timeout=max(0.0, left_s))
        # The same plan drawn in a batch has another probability by rounding.
        is_same = greedy and self._best and self._best.sub_queries == greedy.sub_queries
        return greedy if is_same else self._best

    async def _draw(self, number: int) -> None:
        total = 0.0

        def add(log_probs: Sequence[float]) -> None:
            nonlocal total
            total += sum(log_probs)
            if total <= self._best_total:
                raise LessLikely

        try:
            plan = await self._write(number, add)
        except (LessLikely, PlanError, BackendError, TimeoutError):
            return
        # A server without log-probabilities says nothing of what is likely.
        if plan.log_probs and total > self._best_total:
            self._best, self._best_total = replace(plan, is_drawn=True), total
