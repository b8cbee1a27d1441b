"""One query with parts of it given: the plan, the routes, some or all sub-answers.

The rungs from Comp-LLM as it is to gold in all but the last step show where accuracy is lost; one
sub-answer given wrongly shows how an error travels. The expert stage and the composing are the
product's own; a given response is handed to it in the engine's place.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.accuracy.lab import Lab
from compllm.assembly import make_aggregator, make_engine
from compllm.backend import Backend, Chunk, GenerateRequest, open_chunks
from compllm.compose import compose
from compllm.execute import Execution, LiveQuery
from compllm.graph import QueryGraph
from compllm.types import NodeResult, Plan, Query, Route, Usage

_seq = itertools.count()


class GivenBackend:
    """Answers some nodes of one query with given responses, asks the backend for the rest."""

    def __init__(self, backend: Backend, query_id: str, given: Mapping[int, str]) -> None:
        self._backend = backend
        # execute.py numbers its requests QUERY-NODE-ATTEMPT.
        self._given = {f"{query_id}-{node}-0": text for node, text in given.items()}

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        text = self._given.get(request.id)
        if text is not None:
            yield Chunk(text, finish_reason="stop", usage=Usage())
            return
        async with open_chunks(self._backend, request) as chunks:
            async for chunk in chunks:
                yield chunk

    async def aclose(self) -> None:
        await self._backend.aclose()


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a plan."""

    answer: str
    nodes: tuple[NodeResult, ...]  # in the order of the plan


async def run_plan(
    lab: Lab, query: Query, plan: Plan, routes: Sequence[Route], given: Mapping[int, str]
) -> Ran:
    """Run a plan on these routes, with these responses instead of the experts'; compose the
    leaves."""
    engine = make_engine(GivenBackend(lab.backend, query.id, given), lab.catalogue, lab.config)
    live = LiveQuery(query.id, next(_seq), asyncio.get_running_loop().time(), lambda _: None)
    limits = lab.config.limits
    graph = QueryGraph(max_nodes=limits.max_nodes, max_depth=limits.max_depth)
    execution = Execution(engine, live, graph)
    async with execution:
        for sub_query, route in zip(plan.sub_queries, routes, strict=True):
            execution.add(sub_query, route)
    answer = await compose_text(lab, query, execution.leaves())
    return Ran(answer, execution.results())


async def compose_text(lab: Lab, query: Query, pairs: Sequence[tuple[str, str | None]]) -> str:
    """What the aggregator makes of these questions and responses."""
    aggregator = make_aggregator(lab.catalogue, lab.config)
    pieces = [piece async for piece in compose(query, pairs, lab.backend, aggregator)]
    return "".join(pieces).strip()
