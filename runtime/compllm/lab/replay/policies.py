"""When a node may start: the baselines that the runtime is compared with.

Each is a stage of the path: planning, routing, requests, context, retries and the answer are the
path's own, only the moment of a node's start differs. `dataflow` is the stage of the runtime.
"""

from __future__ import annotations

import asyncio
from typing import Literal

from compllm.execute import Execution
from compllm.graph import QueryGraph
from compllm.stage import Lines, Stage, dataflow
from compllm.types import Route, SubQuery

PolicyName = Literal["sequential", "levels", "dataflow", "polling"]

POLL_S = 0.01  # LLMCompiler's scheduling interval (Kim et al. 2024, section 3.2 and its code)


async def sequential(lines: Lines, execution: Execution) -> None:
    """The whole plan, then one node after another in its order."""
    for line, route in await _whole(lines):
        execution.add(line, route)
        await execution.ended(line.id)


async def levels(lines: Lines, execution: Execution) -> None:
    """The whole plan, then level by level with a barrier between: the Comp-LLM paper's runtime."""
    plan = await _whole(lines)
    depths: dict[int, int] = {}
    for line, _ in plan:
        depths[line.id] = 1 + max((depths[parent] for parent in line.parents), default=0)
    for depth in range(1, max(depths.values(), default=0) + 1):
        level = [(line, route) for line, route in plan if depths[line.id] == depth]
        for line, route in level:
            execution.add(line, route)
        for line, _ in level:
            await execution.ended(line.id)


async def polling(lines: Lines, execution: Execution) -> None:
    """As LLMCompiler's paper describes its task fetching unit: the planner's tasks are streamed to
    it, every 10 ms it looks which of them have all their parents, and whether all have ended."""
    waiting: list[tuple[QueryGraph, SubQuery, Route]] = []

    async def fetch() -> None:
        async for line, route in lines:
            waiting.append((execution.graph, line, route))

    def start_ready() -> None:
        # Without those of a plan that was replaced.
        fetched = [each for each in waiting if each[0] is execution.graph]
        waiting.clear()
        for graph, line, route in fetched:
            if all(map(execution.has_ended, line.parents)):
                execution.add(line, route)
            else:
                waiting.append((graph, line, route))

    fetching = asyncio.create_task(fetch())
    try:
        while not fetching.done() or waiting or not execution.is_idle:
            start_ready()
            # A baseline that polls, on purpose.
            await asyncio.sleep(POLL_S)
        await fetching  # raises what ended the lines
    finally:
        fetching.cancel()
        await asyncio.gather(fetching, return_exceptions=True)


async def _whole(lines: Lines) -> list[tuple[SubQuery, Route]]:
    """All lines of the plan that counts in the end."""
    plan: list[tuple[SubQuery, Route]] = []
    async for line, route in lines:
        if line.id == 1:
            plan.clear()
        plan.append((line, route))
    return plan


STAGES: dict[PolicyName, Stage] = {
    "sequential": sequential,
    "levels": levels,
    "dataflow": dataflow,
    "polling": polling,
}
POLICIES: tuple[PolicyName, ...] = tuple(STAGES)
