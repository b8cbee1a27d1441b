"""One query with parts of it given: the plan, the routes, some or all sub-answers.

The rungs from Comp-LLM as it is to gold in all but the last step show where accuracy is lost; one
sub-answer given wrongly shows how an error travels. The expert stage and the composing are the
product's own; a given response is handed to it in the engine's place.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.evaluation.lab import Lab
from compllm.admission import Admission
from compllm.backend import Backend, Chunk, GenerateRequest, open_chunks
from compllm.compose import Aggregator, compose
from compllm.execute import Engine, Execution, LiveQuery, NodeSettings
from compllm.graph import QueryGraph
from compllm.types import NodeResult, Plan, Query, Route, SamplingParams, Usage

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
    backend = GivenBackend(lab.backend, query.id, given)
    live = LiveQuery(query.id, next(_seq), asyncio.get_running_loop().time(), lambda _: None)
    limits = lab.config.limits
    graph = QueryGraph(max_nodes=limits.max_nodes, max_depth=limits.max_depth)
    execution = Execution(replace(_engine(lab), backend=backend), live, graph)
    async with execution:
        for sub_query, route in zip(plan.sub_queries, routes, strict=True):
            execution.add(sub_query, route)
    answer = await compose_text(lab, query, execution.leaves())
    return Ran(answer, execution.results())


async def compose_text(lab: Lab, query: Query, pairs: Sequence[tuple[str, str | None]]) -> str:
    """What the aggregator makes of these questions and responses."""
    pieces = [piece async for piece in compose(query, pairs, lab.backend, aggregator(lab))]
    return "".join(pieces).strip()


def aggregator(lab: Lab) -> Aggregator:
    """As the pipeline makes it of the same settings."""
    settings, catalogue = lab.config.compose, lab.catalogue
    return Aggregator(
        settings.policy,
        catalogue.base.model,
        catalogue.adapter(settings.adapter).id if settings.adapter else None,
        catalogue.template,
        SamplingParams(max_tokens=lab.config.limits.max_answer_tokens),
    )


def _engine(lab: Lab) -> Engine:
    limits, timeouts, catalogue = lab.config.limits, lab.config.timeouts, lab.catalogue
    experts = {expert.name: expert for expert in (catalogue.base, *catalogue.experts)}
    models = {expert.model: limits.max_in_flight for expert in experts.values()}
    return Engine(
        lab.backend,
        Admission(models, max_waiting=limits.max_waiting),
        experts,
        catalogue.base,
        NodeSettings(
            SamplingParams(max_tokens=limits.max_node_tokens),
            catalogue.template,
            timeouts.node_s,
            timeouts.retry_wait_s,
        ),
    )
