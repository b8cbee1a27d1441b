"""The whole path of a query: `CompLLM.stream` is the one function in which to read it.

decompose -> embed -> route -> graph -> execute -> compose, each a module of its name. They overlap:
a line of the plan is routed and sent to its expert while the generator writes the next one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Self

from compllm.asked import asked_ids
from compllm.assembly import (
    RuntimeStats,
    make_aggregator,
    make_engine,
    make_generator,
    make_query_admission,
)
from compllm.backend import Backend
from compllm.catalogue import Catalogue
from compllm.compose import compose, join
from compllm.confidence import Verdict, open_judge
from compllm.config import Config
from compllm.decompose import Sending, decompose
from compllm.errors import BackendError, DeadlineExceeded, QueryError
from compllm.execute import Emit, Execution, LiveQuery
from compllm.graph import QueryGraph
from compllm.plan import direct_plan
from compllm.prompt_length import Reader, excess_of_prompt, excess_of_text
from compllm.prompts import UNKNOWN, node_prompt
from compllm.query_check import checked, checked_plan
from compllm.query_run import Run
from compllm.routing.embed import Array, Encoder
from compllm.routing.gate import GateKeeper, open_gate
from compllm.routing.ownership import REASON as UNOWNED
from compllm.routing.ownership import Ownership
from compllm.routing.route import Router
from compllm.scheduling.admission import Admission
from compllm.stage import Stage, dataflow
from compllm.types import (
    ANSWER_NODE,
    PLAN_NODE,
    Answer,
    AnswerFinished,
    Event,
    Plan,
    Query,
    Route,
    SubQuery,
    SubQueryPlanned,
)

# Generator and aggregator requests go through admission too: the whole query waits for them.
_WHOLE_PATH = 1e9


class CompLLM:
    """Answers composite questions. `async with` it; queries may run at the same time.

    Made of parts, or by `connect` of the real ones. `num_fallbacks` counts the
    plans that were unusable.
    """

    def __init__(
        self, backend: Backend, encoder: Encoder, catalogue: Catalogue, config: Config | None = None
    ) -> None:
        self.config = config or Config()
        self.catalogue = catalogue
        self.num_fallbacks = 0
        self._encoder = encoder
        self._router: Router | None = None
        self._gate: GateKeeper | None = None
        self._judge_of_answers = open_judge(
            catalogue.confidence, self.config.answer, catalogue.base.name
        )
        self._engine = make_engine(backend, catalogue, self.config)
        self._queries = make_query_admission(self._engine, self.config)
        self._generator = make_generator(catalogue, self.config)
        self._aggregator = make_aggregator(catalogue, self.config)
        self._seq = itertools.count()
        self._live: set[str] = set()  # ids of the queries under way

    @classmethod
    async def connect(cls, config: Config | None = None) -> Self:
        """The real thing: Triton over gRPC, the sentence encoder, the catalogue of the
        configuration; None: that of the user's running server, and what else it is set to.

        Warns (ConfigWarning) when the server works with another catalogue. Raises ConfigError,
        RouteError, BackendUnavailable.
        """
        from compllm.connect import connect

        return await connect(cls, config)

    @property
    def admission(self) -> Admission:
        """The queue in front of the engines; its loads are for metrics."""
        return self._engine.admission

    async def __aenter__(self) -> Self:
        try:
            self._router = await Router.build(self.catalogue, self._encoder)
            self._gate = await open_gate(self.config.gate, self._encoder)
        except BaseException:
            await self._engine.backend.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._engine.flights.aclose()
        await self._engine.backend.aclose()

    def stats(self) -> RuntimeStats:
        """Counters over all queries so far."""
        engine = self._engine
        return RuntimeStats(
            engine.admission.loads(),
            engine.flights.stats(),
            self._queries.load(),
            self.num_fallbacks,
        )

    async def warm_up(self, texts: Sequence[str] = ()) -> None:
        """Find the vectors of these texts before a query needs them."""
        await self._encoder.encode(list(texts))

    async def stream(
        self, query: Query | str, *, plan: Plan | None = None, stage: Stage = dataflow
    ) -> AsyncGenerator[Event, None]:
        """Yield everything that happens to a query, last AnswerFinished. `plan`: run this one.
        `stage`: decides which node starts when.

        Waits for its turn while too many queries run. Ends within the deadline: with an answer,
        with a partial one (a node failed or time was up, and there is something to return), or with
        QueryError, PlanError, BackendError or DeadlineExceeded. Closing the iterator cancels what
        runs.
        """
        self._opened()
        query, given = await self._check(query, plan)
        deadline_s = query.deadline_s or self.config.timeouts.query_s

        async def path(emit: Emit) -> None:
            live = LiveQuery(query.id, next(self._seq), asyncio.get_running_loop().time(), emit)
            run = Run(query, live, Execution(self._engine, live, self._new_graph()))
            try:
                end_s = live.start_s + deadline_s
                async with asyncio.timeout_at(end_s), self._queries.place(query.id, end_s):
                    # Nodes run from here on, by default from the moment the last parent has ended.
                    async with run.execution, aclosing(self._routed_plan(run, given)) as lines:
                        await stage(lines, run.execution)
                    run.verdict = self._judge(run)
                    async with aclosing(self._compose(run, run.verdict)) as answer:
                        async for text in answer:
                            run.say(text)
            except TimeoutError:
                message = f"the deadline of {deadline_s:g} s is over"
                run.error = DeadlineExceeded(message, query_id=query.id)
            except BackendError as error:
                run.error = error
            emit(AnswerFinished(run.finish()))

        self._live.add(query.id)
        try:
            async with aclosing(_relay(path)) as events:
                async for event in events:
                    yield event
        finally:
            self._live.discard(query.id)

    async def ask(
        self, query: Query | str, *, plan: Plan | None = None, stage: Stage = dataflow
    ) -> Answer:
        """The answer, with all that led to it. Raises as `stream` does."""
        async with aclosing(self.stream(query, plan=plan, stage=stage)) as events:
            async for event in events:
                if isinstance(event, AnswerFinished):
                    return event.answer
        raise AssertionError("a stream ends with AnswerFinished or an error")

    async def plan(self, query: Query | str) -> tuple[Plan, tuple[Route, ...]]:
        """The plan that `stream` would run, by the gate or the generator, and the route of each of
        its sub-queries; nothing is executed.

        Raises QueryError, BackendError, DeadlineExceeded.
        """
        self._opened()
        query, _ = await self._check(query, None)
        deadline_s = query.deadline_s or self.config.timeouts.query_s
        live = LiveQuery(
            query.id, next(self._seq), asyncio.get_running_loop().time(), lambda _: None
        )
        # Its nodes are never added: the run is there to be planned, by the code of `stream`.
        run = Run(query, live, Execution(self._engine, live, self._new_graph()))
        try:
            async with asyncio.timeout(deadline_s):
                async with aclosing(self._routed_plan(run, None)) as lines:
                    routes = {line.id: route async for line, route in lines}
        except TimeoutError:
            message = f"the deadline of {deadline_s:g} s is over"
            raise DeadlineExceeded(message, query_id=query.id) from None
        plan = run.plan or Plan(())
        return plan, tuple(routes[sub_query.id] for sub_query in plan.sub_queries)

    # The steps, as far as they need more than their own module.

    async def _routed_plan(
        self, run: Run, given: Plan | None
    ) -> AsyncGenerator[tuple[SubQuery, Route], None]:
        """decompose -> embed -> route: yield each line of the plan, with its route, as soon as it
        may run.

        Lines wait until an expert owns one; where none does, the base gets the whole question.
        """
        router, is_owned = self._opened(), not self.config.gate.whole_to_base
        owned = Ownership(is_owned=is_owned)
        async with aclosing(self._decompose(run, given)) as plan_lines:
            async for lines in plan_lines:
                if lines[0].id == 1:  # the first, or those of a plan that replaces it
                    owned = Ownership(is_owned=is_owned)
                routes = router.route(await self._embed(run, lines))
                is_given = run.plan is not None
                for line, route in owned.admit(zip(lines, routes, strict=True), is_given=is_given):
                    run.live.emit(SubQueryPlanned(line, route))
                    yield line, route
        if owned.is_unowned:
            whole = replace(direct_plan(run.query.text), reason=UNOWNED)
            (route,) = router.route(await self._embed(run, whole.sub_queries))
            run.finish_plan(whole)
            route = replace(route, expert=router.default, is_fallback=True)
            run.live.emit(SubQueryPlanned(whole.sub_queries[0], route))
            yield whole.sub_queries[0], route
        elif run.proposed is not None:
            run.finish_plan(run.proposed)

    async def _decompose(
        self, run: Run, given: Plan | None
    ) -> AsyncGenerator[tuple[SubQuery, ...], None]:
        """Yield the plan's sub-queries: each when its line ends, or all of a plan that is there
        already."""
        if given is None and self._gate is not None:
            given = await self._gate.plan(run.query.text)
        if given is not None:
            run.finish_plan(given)
            yield given.sub_queries
            return
        async with aclosing(self._generate(run)) as items:
            async for item in items:
                if isinstance(item, SubQuery):
                    yield (item,)
                    continue
                if is_other := item.is_fallback or item.is_drawn:
                    await run.execution.restart(self._new_graph())
                if item.is_fallback:
                    self.num_fallbacks += 1
                    run.finish_plan(item)
                else:
                    run.proposed = item
                if is_other:
                    yield item.sub_queries

    def _generate(self, run: Run) -> AsyncGenerator[SubQuery | Plan, None]:
        usage = run.live.usage
        sending = Sending(lambda: usage.plan_request().add, lambda: self._slot(run.live, PLAN_NODE))
        return decompose(run.query, self._engine.backend, self._generator, sending)

    async def _embed(self, run: Run, lines: Sequence[SubQuery]) -> Array:
        start_s = run.live.elapsed_s()
        vectors = await self._encoder.encode([line.text for line in lines])
        run.route_s += run.live.elapsed_s() - start_s
        return vectors

    def _judge(self, run: Run) -> Verdict:
        """How sure the responses are that the query asks for, and which of them may be stated."""
        execution = run.execution
        asked = asked_ids(run.query.text, tuple(execution.graph), execution.graph.leaves)
        routed = [(line, execution.routes[line.id]) for line in execution.graph]
        return self._judge_of_answers.judge(
            run.plan or Plan(()),
            routed,
            execution.results(),
            asked,
            execution.responses(asked),
        )

    async def _compose(self, run: Run, verdict: Verdict) -> AsyncGenerator[str, None]:
        if verdict.is_withheld:
            yield UNKNOWN
            return
        leaves = verdict.leaves
        if not self._aggregator.needs_model(leaves):
            yield join(leaves)
            return
        usage, backend = run.live.usage, self._engine.backend
        request = self._aggregator.request(run.query, leaves)
        if await excess_of_prompt(
            backend, request.model, request.prompt, request.sampling.max_tokens
        ):
            yield join(leaves)
            return
        async with self._slot(run.live, ANSWER_NODE):
            usage.answer = usage.request()
            texts = compose(
                run.query, leaves, backend, self._aggregator, run.answer_ended, usage.answer.add
            )
            async with aclosing(texts):
                async for text in texts:
                    yield text

    def _slot(self, live: LiveQuery, node_id: int) -> AbstractAsyncContextManager[None]:
        """A place at the engine for a request that the whole query waits for."""
        model = self._generator.model if node_id == PLAN_NODE else self._aggregator.model
        return self._engine.admission.slot(model, live.seq, node_id, _WHOLE_PATH)

    # Before anything is sent.

    def _opened(self) -> Router:
        if self._router is None:
            raise RuntimeError("CompLLM is not open: use 'async with CompLLM(...) as llm'")
        return self._router

    async def _check(self, query: Query | str, plan: Plan | None) -> tuple[Query, Plan | None]:
        query = checked(query, self.config.limits)
        given = checked_plan(plan, query, self.config.limits)
        readers = tuple(self._readers_of_question(given))
        if (excess := await excess_of_text(self._engine.backend, query.text, readers)) is not None:
            problem = f"the question has {excess}: shorten it, or ask it in parts"
            raise QueryError(problem, query_id=query.id)
        if query.id in self._live:
            problem = f"a query with the id {query.id!r} is running already"
            raise QueryError(problem, query_id=query.id)
        return query, given

    def _readers_of_question(self, given: Plan | None) -> Iterator[Reader]:
        """The steps that read the whole question. The aggregator is none: where its prompt does not
        fit, the responses are joined."""
        if given is None:
            generator = self._generator
            yield Reader(generator.model, generator.prompt, generator.max_tokens)
        if given is None or given.is_direct:
            nodes = self._engine.nodes
            kinds = {(each.model, each.system): each for each in self._engine.experts.values()}
            for expert in kinds.values():
                prompt = partial(node_prompt, expert, template=nodes.template)
                yield Reader(expert.model, prompt, nodes.sampling.max_tokens)

    def _new_graph(self) -> QueryGraph:
        limits = self.config.limits
        return QueryGraph(max_nodes=limits.max_nodes, max_depth=limits.max_depth)


def ask_sync(
    query: Query | str, *, plan: Plan | None = None, config: Config | None = None
) -> Answer:
    """Connect, ask, disconnect, blocking. For scripts and notebooks; each call loads the encoder
    anew."""

    async def ask() -> Answer:
        async with await CompLLM.connect(config) as llm:
            return await llm.ask(query, plan=plan)

    return asyncio.run(ask())


async def _relay(path: Callable[[Emit], Awaitable[None]]) -> AsyncGenerator[Event, None]:
    """Run the path as a task of its own and yield what it emits, then raise what it raised.

    A task, because cancel scopes (TaskGroup, timeout) must not span the yields of a generator.
    """
    events: asyncio.Queue[Event | None] = asyncio.Queue()

    async def run() -> None:
        try:
            await path(events.put_nowait)
        finally:
            events.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (event := await events.get()) is not None:
            yield event
        await task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
