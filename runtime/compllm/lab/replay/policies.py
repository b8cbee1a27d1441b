"""When a node may start: the baselines that the runtime is compared with.

Each takes the lines of a plan as they are written and hands nodes to a `Stage`, which is the
runtime's own expert stage: routing, requests, context and retries are the same for all, only the
moment of a start differs. `dataflow` is not here: it is the runtime itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Literal

from compllm.execute import Execution
from compllm.types import Event, NodeFinished, Route, SubQuery

PolicyName = Literal["sequential", "levels", "dataflow", "polling"]
Lines = AsyncIterator[SubQuery]

POLL_S = 0.01  # LLMCompiler's scheduling interval (Kim et al. 2024, section 3.2 and its code)


class Stage:
    """The expert stage as a policy sees it: start a node, know when it has ended."""

    def __init__(self, route: Callable[[Sequence[SubQuery]], Awaitable[Sequence[Route]]]) -> None:
        self.route = route
        self._ended: dict[int, asyncio.Event] = {}
        self._execution: Execution | None = None

    def opened(self, execution: Execution) -> None:
        self._execution = execution

    def start(self, sub_query: SubQuery, route: Route) -> None:
        """All its parents must have ended."""
        assert self._execution is not None
        self._event(sub_query.id)
        self._execution.add(sub_query, route)

    def emit(self, event: Event) -> None:
        """What the execution tells."""
        if isinstance(event, NodeFinished):
            self._event(event.result.id).set()

    def has_ended(self, node_id: int) -> bool:
        return self._event(node_id).is_set()

    async def ended(self, node_id: int) -> None:
        await self._event(node_id).wait()

    def _event(self, node_id: int) -> asyncio.Event:
        return self._ended.setdefault(node_id, asyncio.Event())


Policy = Callable[[Lines, Stage], Awaitable[None]]


async def sequential(lines: Lines, stage: Stage) -> None:
    """The whole plan, then one node after another in its order."""
    plan = [line async for line in lines]
    for line, route in zip(plan, await stage.route(plan), strict=True):
        stage.start(line, route)
        await stage.ended(line.id)


async def levels(lines: Lines, stage: Stage) -> None:
    """The whole plan, then level by level with a barrier between: the Comp-LLM paper's runtime."""
    plan = [line async for line in lines]
    routes = dict(zip((line.id for line in plan), await stage.route(plan), strict=True))
    depths: dict[int, int] = {}
    for line in plan:
        depths[line.id] = 1 + max((depths[parent] for parent in line.parents), default=0)
    for depth in range(1, max(depths.values(), default=0) + 1):
        level = [line for line in plan if depths[line.id] == depth]
        for line in level:
            stage.start(line, routes[line.id])
        for line in level:
            await stage.ended(line.id)


async def polling(lines: Lines, stage: Stage) -> None:
    """As LLMCompiler's paper describes its task fetching unit: the planner's tasks are streamed to
    it, every 10 ms it looks which of them have all their parents, and whether all have ended."""
    waiting: dict[int, tuple[SubQuery, Route]] = {}
    started: list[int] = []

    async def fetch() -> None:
        async for line in lines:
            (route,) = await stage.route([line])
            waiting[line.id] = line, route

    async with asyncio.TaskGroup() as tasks:
        fetching = tasks.create_task(fetch())
        while not fetching.done() or waiting or not all(map(stage.has_ended, started)):
            for node_id, (line, route) in tuple(waiting.items()):
                if all(map(stage.has_ended, line.parents)):
                    del waiting[node_id]
                    started.append(node_id)
                    stage.start(line, route)
            # A baseline that polls, on purpose.
            await asyncio.sleep(POLL_S)


BASELINES: dict[str, Policy] = {
    "sequential": sequential,
    "levels": levels,
    "polling": polling,
}
POLICIES: tuple[PolicyName, ...] = ("sequential", "levels", "dataflow", "polling")
