"""Stages: which node of a plan starts when. The path runs `dataflow`; replay also runs others.

A stage takes the routed lines of a plan as they come and adds each to the execution. The path waits
for all nodes after it. A line with id 1 that comes again begins the plan that replaces the first:
the execution has been restarted then.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

from compllm.execute import Execution
from compllm.types import Route, SubQuery

Lines = AsyncIterator[tuple[SubQuery, Route]]
Stage = Callable[[Lines, Execution], Awaitable[None]]


async def dataflow(lines: Lines, execution: Execution) -> None:
    """Each node from the moment its last parent has ended, while later lines are written."""
    async for line, route in lines:
        execution.add(line, route)
