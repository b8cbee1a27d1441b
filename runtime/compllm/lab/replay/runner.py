"""One graph under one policy -> Answer: the runtime itself, or a baseline made of its parts.

`dataflow` is `CompLLM.stream` unchanged. The baselines plan, route, execute and compose with the
same generator, router, expert stage and aggregator; a `Policy` alone decides when a node starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass, replace

from compllm.backend import Backend
from compllm.catalogue import Catalogue
from compllm.compose import Aggregator, compose
from compllm.config import Config, GateConfig
from compllm.decompose import Generator, decompose
from compllm.errors import BackendError
from compllm.execute import Engine, Execution, LiveQuery
from compllm.graph import QueryGraph
from compllm.lab.replay.forced import ForcedBackend, ForcedWork
from compllm.lab.replay.policies import BASELINES, Policy, PolicyName, Stage
from compllm.pipeline import CompLLM
from compllm.routing.embed import Encoder
from compllm.routing.route import Router
from compllm.scheduling.admission import PolicyName as AdmissionPolicy
from compllm.types import Answer, Plan, Query, Route, SubQuery, Timings

_WHOLE_PATH = 1e9  # plan and answer: the whole query waits for them
_PATIENCE_S = 86_400.0  # a query's wait under load is what is measured, no failure


class ReplayLLM(CompLLM):
    """A CompLLM whose queries do forced work, under any policy."""

    def __init__(
        self, backend: Backend, encoder: Encoder, catalogue: Catalogue, config: Config | None = None
    ) -> None:
        config = replayable(config or Config())
        self.forced = ForcedBackend(backend)
        super().__init__(self.forced, encoder, catalogue, config)
        # A gold plan may have as many lines as any plan, more than a generator is let write.
        self._generator = replace(self._generator, limits=config.limits.plan)

    def use_admission(self, policy: AdmissionPolicy) -> None:
        """Another order of waiting requests. Before the first query."""
        self.admission.policy = policy
        self.admission.set_limits({})  # the queue anew

    def use_gate(self, gate: GateConfig) -> None:
        """Let questions past the generator. Before it is opened; what the gate sends straight on
        must have a gold plan of one node."""
        self.config = replace(self.config, gate=gate)

    async def warm_up(self, texts: Sequence[str]) -> None:
        """Have the encoder's vectors of these texts at hand, so that routing costs no time, and the
        engine's limits."""
        await self._limits.find()
        await self._encoder.encode(list(texts))

    async def answer(
        self, query: Query, work: ForcedWork, policy: PolicyName, *, is_planned: bool
    ) -> Answer:
        """Run the query's gold plan; is_planned: written by the generator, else given.

        Raises BackendError where the engine fails, or did other work than it was told to.
        """
        plan = None if is_planned else work.plan
        with self.forced.forced(query.id, work):
            if policy == "dataflow":
                answer = await self.ask(query, plan=plan)
            else:
                answer = await self._baseline(query, plan, BASELINES[policy])
        if answer.plan.is_fallback or answer.plan.sub_queries != work.plan.sub_queries:
            raise BackendError(
                f"the generator did not write the plan: {answer.plan.reason or 'another one'}",
                query_id=query.id,
            )
        return answer

    async def _baseline(self, query: Query, plan: Plan | None, policy: Policy) -> Answer:
        parts = _Parts(
            self._engine, self._generator, self._aggregator, self._encoder, self._opened()
        )
        run = _Baseline(parts, query, plan, next(self._seq), self._new_graph())
        async with run.execution, aclosing(run.lines()) as lines:
            await policy(lines, run.stage)
        async with aclosing(run.texts()) as texts:
            pieces = [text async for text in texts]
        return run.answer("".join(pieces))


@dataclass(frozen=True, slots=True)
class _Parts:
    """The runtime's own, of a CompLLM."""

    engine: Engine
    generator: Generator
    aggregator: Aggregator
    encoder: Encoder
    router: Router


class _Baseline:
    """One query on the runtime's parts."""

    def __init__(
        self, parts: _Parts, query: Query, plan: Plan | None, seq: int, graph: QueryGraph
    ) -> None:
        self._parts = parts
        self._query = query
        self._plan = plan
        self._plan_s = self._route_s = self._first_token_s = 0.0
        self.stage = Stage(self._route)
        start_s = asyncio.get_running_loop().time()
        self._live = LiveQuery(query.id, seq, start_s, self.stage.emit)
        self.execution = Execution(parts.engine, self._live, graph)
        self.stage.opened(self.execution)

    async def lines(self) -> AsyncGenerator[SubQuery, None]:
        """Of the given plan, or as the generator writes them."""
        if self._plan is not None:
            for line in self._plan.sub_queries:
                yield line
            return
        generator, engine = self._parts.generator, self._parts.engine
        slot = engine.admission.slot(generator.model, self._live.seq, 0, _WHOLE_PATH)
        items = decompose(self._query, engine.backend, generator)
        async with slot, aclosing(items):
            async for item in items:
                if isinstance(item, SubQuery):
                    yield item
                else:
                    self._plan, self._plan_s = item, self._live.elapsed_s()

    async def texts(self) -> AsyncGenerator[str, None]:
        """Of the answer."""
        aggregator, engine = self._parts.aggregator, self._parts.engine
        leaves = self.execution.leaves()
        slot = (
            engine.admission.slot(aggregator.model, self._live.seq, -1, _WHOLE_PATH)
            if aggregator.needs_model(leaves)
            else nullcontext()
        )
        texts = compose(self._query, leaves, engine.backend, aggregator)
        async with slot, aclosing(texts):
            async for text in texts:
                self._first_token_s = self._first_token_s or self._live.elapsed_s()
                yield text

    def answer(self, text: str) -> Answer:
        """As `CompLLM.stream` ends."""
        total_s, nodes = self._live.elapsed_s(), self.execution.results()
        assert self._plan is not None
        last_end_s = max((node.end_s for node in nodes), default=0.0)
        first_start_s = min((node.start_s for node in nodes), default=0.0)
        error = self.execution.first_error
        return Answer(
            self._query,
            text.lstrip(),
            self._plan,
            tuple(self.execution.routes[each.id] for each in self.execution.graph),
            nodes,
            Timings(
                self._plan_s,
                self._route_s,
                last_end_s - first_start_s,
                total_s - last_end_s,
                self._first_token_s,
                total_s,
            ),
            self.execution.bound(),
            is_partial=error is not None or any(node.status != "done" for node in nodes),
            error=None if error is None else str(error),
        )

    async def _route(self, lines: Sequence[SubQuery]) -> Sequence[Route]:
        start_s = self._live.elapsed_s()
        vectors = await self._parts.encoder.encode([line.text for line in lines])
        routes = self._parts.router.route(vectors)
        self._route_s += self._live.elapsed_s() - start_s
        return routes


def replayable(config: Config) -> Config:
    """The settings without time-outs, and without what would change a gold plan or its texts: every
    one is written, run and said."""
    return replace(
        config,
        gate=replace(config.gate, mode="off", whole_to_base=False),
        answer=replace(config.answer, abstain="never", cut_loops=False, keep_all=False),
        timeouts=replace(
            config.timeouts, query_s=_PATIENCE_S, plan_s=_PATIENCE_S, node_s=_PATIENCE_S
        ),
    )
