"""Queries that arrive two at a time, at random: the part `load` of bench_ablation.

The two of a pair have their first sub-queries in common (`ablation_variants.neighbours`) and write
their plans side by side: what they share is in flight at once, or nobody could join it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compllm.replay.drive import OnRan, ReplaySettings
    from compllm.replay.graphs import ReplayGraph
    from compllm.replay.runner import ReplayLLM


async def replay_pairs(
    llm: ReplayLLM, graphs: Sequence[ReplayGraph], settings: ReplaySettings, on_ran: OnRan
) -> None:
    """`drive.replay` of a rate, which is still of queries: pairs come half as often."""
    from compllm.errors import CompllmError
    from compllm.replay.drive import Ran, run_graph
    from compllm.replay.forced import ForcedWork
    from compllm.replay.workload import arrivals

    assert settings.rate_qps is not None
    loop = asyncio.get_running_loop()
    start_s = loop.time()

    async def run(index: int, due_s: float) -> None:
        graph, begun_s = graphs[index], loop.time() - start_s
        answer, error = None, None
        work = ForcedWork(graph.plan, {})
        try:
            work, answer = await run_graph(llm, graph, settings, f"r{index}")
            error = answer.error
        except CompllmError as failure:
            error = str(failure)
        on_ran(Ran(index, graph, work, begun_s, begun_s - due_s, answer, error))

    firsts = range(0, len(graphs), 2)
    due = arrivals(settings.rate_qps / 2, settings.seed)
    async with asyncio.TaskGroup() as tasks:
        for first, due_s in zip(firsts, due, strict=False):
            await asyncio.sleep(max(0.0, due_s - (loop.time() - start_s)))
            for index in range(first, min(first + 2, len(graphs))):
                tasks.create_task(run(index, due_s))
