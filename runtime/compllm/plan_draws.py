"""Other plans, where the generator is not sure of the one that it writes. Part of decompose.

The greedy plan takes the likeliest token each time, and one odd token early on can lead to a plan
that is less likely as a whole than another. A plan with a probability above 1/2 is the likeliest
there is, and one above 0.3 nearly always. As soon as the greedy one falls below that, others are
drawn beside it, from the model's own distribution, and the likeliest of all is taken. A draw ends
when it can no longer be that one. The seeds of the draws are fixed: the same question has the same
plan.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Self

from compllm.errors import BackendError, PlanError
from compllm.types import Plan

UNSURE = math.log(0.3)  # of a whole plan: one above it is kept


class LessLikely(Exception):
    """A plan that is being written is less likely than one that is whole."""


class PlanDraws:
    """Draws `count` plans beside the greedy one; an `async with` block that ends them.

    write: writes the plan of a draw's number (from 1); it calls its second argument with the new
    log-probabilities, and lets through the LessLikely that this raises. It raises PlanError,
    BackendError or TimeoutError where there is no plan: that draw is left out.
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
        """The likeliest of the greedy plan and the draws, which end by `deadline` on the loop's
        clock. greedy: None where it broke a rule. None: there is no plan at all."""
        if greedy is not None and self._greedy_total >= self._best_total:
            self._best, self._best_total = greedy, self._greedy_total
        if self._tasks:
            left_s = deadline - asyncio.get_running_loop().time()
            await asyncio.wait(self._tasks, timeout=max(0.0, left_s))
        return self._best

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
