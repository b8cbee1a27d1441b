"""Many graphs through `runner.py`: N at a time, or as they arrive.

Closed loop: `concurrency` graphs are under way, the next begins when one ends. Open loop: they
arrive as a Poisson process of the seed, however many are still under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from compllm.errors import BackendError, CompllmError
from compllm.lab.replay.forced import ForcedWork
from compllm.lab.replay.graphs import ReplayGraph
from compllm.lab.replay.policies import PolicyName
from compllm.lab.replay.runner import ReplayLLM
from compllm.lab.replay.workload import Overhead, TokenLengths, arrivals
from compllm.types import Answer, Query, SamplingParams

_MAX_FAILED_IN_A_ROW = 10  # then it is not the graphs


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """What is replayed, and how."""

    policy: PolicyName = "dataflow"
    lengths: TokenLengths = field(default_factory=lambda: TokenLengths(32))
    answer_tokens: int = 64  # of the composed answer
    # plan+compose: the gold plan goes through the generator, an answer is composed. none: the plan
    # and its routes are given, the leaves are the answer.
    overhead: Overhead = "plan+compose"
    concurrency: int = 1
    rate_qps: float | None = None  # arrivals instead of concurrency
    seed: int = 0
    salt: str = ""  # see ForcedWork
    is_plan_streamed: bool = True  # False: nothing starts before the plan is whole, see ForcedWork

    @property
    def is_planned(self) -> bool:
        return self.overhead == "plan+compose"

    @property
    def compose_policy(self) -> Literal["always", "never"]:
        """What `compose.policy` must be: an answer for every graph alike."""
        return "always" if self.is_planned else "never"


@dataclass(frozen=True, slots=True)
class Ran:
    """One graph that has ended."""

    index: int  # in the file
    graph: ReplayGraph
    work: ForcedWork
    start_s: float  # from the start of the replay
    late_s: float  # behind its arrival
    answer: Answer | None
    error: str | None = None


OnRan = Callable[[Ran], None]


async def replay(
    llm: ReplayLLM,
    graphs: Sequence[ReplayGraph],
    settings: ReplaySettings,
    on_ran: OnRan,
    *,
    together: int = 1,
) -> None:
    """Run all graphs; on_ran gets each that has ended, well or badly.

    together: that many queries arrive at once where the settings have a rate, which is still of
    queries. Raises BackendError when one after another fails.
    """
    run = _Replay(llm, graphs, settings, on_ran)
    rate_qps = settings.rate_qps
    try:
        await (run.closed() if rate_qps is None else run.opened(rate_qps, together))
    except BaseExceptionGroup as group:
        ours = group.subgroup(CompllmError)
        if ours is None:
            raise
        error: BaseException = ours
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from None


async def run_graph(
    llm: ReplayLLM, graph: ReplayGraph, settings: ReplaySettings, query_id: str
) -> tuple[ForcedWork, Answer]:
    """One graph by itself. Raises CompllmError."""
    lengths = settings.lengths.of(graph)
    work = ForcedWork(graph.plan, lengths, settings.salt, settings.is_plan_streamed)
    if not settings.is_planned:
        await llm.warm_up([each.text for each in graph.plan.sub_queries])
    count = settings.answer_tokens
    query = Query(
        graph.question, query_id, sampling=SamplingParams(max_tokens=count, min_tokens=count)
    )
    answer = await llm.answer(query, work, settings.policy, is_planned=settings.is_planned)
    return work, answer


class _Replay:
    def __init__(
        self,
        llm: ReplayLLM,
        graphs: Sequence[ReplayGraph],
        settings: ReplaySettings,
        on_ran: OnRan,
    ) -> None:
        self._llm = llm
        self._left = enumerate(graphs)
        self._settings = settings
        self._on_ran = on_ran
        self._start_s = asyncio.get_running_loop().time()
        self._num_failed_in_a_row = 0

    async def closed(self) -> None:
        async def one_after_another() -> None:
            for index, graph in self._left:
                await self._run(index, graph, self._elapsed_s())

        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._settings.concurrency):
                tasks.create_task(one_after_another())

    async def opened(self, rate_qps: float, together: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            groups_s = arrivals(rate_qps / together, self._settings.seed)
            due_s = (at_s for at_s in groups_s for _ in range(together))
            for (index, graph), at_s in zip(self._left, due_s, strict=False):
                await asyncio.sleep(max(0.0, at_s - self._elapsed_s()))
                tasks.create_task(self._run(index, graph, at_s))

    async def _run(self, index: int, graph: ReplayGraph, due_s: float) -> None:
        start_s = self._elapsed_s()
        answer, error = None, None
        work = ForcedWork(graph.plan, {})
        try:
            work, answer = await run_graph(self._llm, graph, self._settings, f"r{index}")
            error = answer.error
        except CompllmError as failure:
            error = str(failure)
        self._on_ran(Ran(index, graph, work, start_s, start_s - due_s, answer, error))
        self._num_failed_in_a_row = self._num_failed_in_a_row + 1 if error else 0
        if self._num_failed_in_a_row >= _MAX_FAILED_IN_A_ROW:
            raise BackendError(
                f"{self._num_failed_in_a_row} graphs in a row failed, the last, {graph.id}: {error}"
            )

    def _elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self._start_s
