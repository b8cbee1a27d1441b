"""Expert stage: run the nodes of a QueryGraph on a Backend and emit a NodeResult for each.

This is the only fan-out of the path: one TaskGroup for a query, one task for a node. A node's task
is made at the moment its last parent ends. Nothing polls, and no node waits for a sibling or for
the planner. The graph may still grow meanwhile.

A node's failure is a value, not an exception. The node is tried again where that is safe, then
answered by the base, then marked failed. The prompts of its children say what is missing. A child
is skipped if none of its parents has a response.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType

from compllm.backend import Backend, GenerateRequest, Prompt
from compllm.errors import BackendError, BackendRejected, BackendUnavailable
from compllm.graph import QueryGraph
from compllm.loops import cut_loop
from compllm.prompt_length import excess_of_prompt
from compllm.prompts import CHATML, ChatTemplate, node_prompt
from compllm.scheduling.admission import Admission, AdmissionTicket
from compllm.scheduling.single_flight import Outcome, SingleFlight
from compllm.spelling import spelled
from compllm.types import (
    Bound,
    Event,
    Expert,
    NodeFinished,
    NodeResult,
    NodeStarted,
    NodeStatus,
    Route,
    SamplingParams,
    SubQuery,
    Usage,
)
from compllm.usage import RequestUsage, UsageCounter

Emit = Callable[[Event], None]
KnownPairs = tuple[tuple[str, str | None], ...]  # (question, response); None: no response


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """How every node is run."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    template: ChatTemplate = CHATML
    timeout_s: float = 60.0  # of one attempt
    retry_wait_s: float = 0.1
    cuts_loops: bool = True


@dataclass(frozen=True, slots=True)
class Engine:
    """What all queries share: the backend, the queue in front of it, and the experts."""

    backend: Backend
    admission: Admission
    flights: SingleFlight  # sends its requests to `backend`
    experts: Mapping[str, Expert]  # by name, the base among them
    base: Expert
    nodes: NodeSettings


@dataclass(frozen=True, slots=True)
class LiveQuery:
    """One query under way."""

    id: str
    seq: int  # a later query has a larger number
    start_s: float  # of the event loop's clock
    emit: Emit
    usage: UsageCounter = field(default_factory=UsageCounter)

    def elapsed_s(self) -> float:
        return asyncio.get_running_loop().time() - self.start_s


@dataclass(slots=True)
class _Times:
    ready_s: float
    start_s: float | None = None


class Execution:
    """The expert stage of one query: an `async with` block that runs the sub-queries added in it.

    `add` parents before their children. The end of the block waits for all sub-queries. An
    exception or a cancellation in the block cancels them.
    """

    def __init__(self, engine: Engine, live: LiveQuery, graph: QueryGraph) -> None:
        self.graph = graph
        self.routes: dict[int, Route] = {}
        self._engine = engine
        self._live = live
        self._group = asyncio.TaskGroup()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._times: dict[int, _Times] = {}
        self._results: dict[int, NodeResult] = {}
        self._slots: dict[int, AdmissionTicket] = {}  # of nodes that are not at the engine yet
        self._errors: list[BackendError] = []
        self._reserve: KnownPairs = ()  # `answered` of the plan before the restart
        self._sampling = engine.nodes.sampling
        # By expert, prompt and sampling: of this plan, and of the plan that it replaced.
        self._outcomes: dict[tuple[object, ...], Outcome] = {}
        self._kept: dict[tuple[object, ...], Outcome] = {}

    async def __aenter__(self) -> Execution:
        await self._group.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            await self._group.__aexit__(kind, error, traceback)
        except BaseExceptionGroup as group:
            # Nodes do not raise: this is the block's own error, or a fault in this program.
            raise _first(group) from None

    def add(self, sub_query: SubQuery, route: Route) -> None:
        """Add a node. It starts now, or when its last parent ends. Raises PlanError."""
        self.routes[sub_query.id] = route
        if self.graph.add(sub_query):
            self._launch(sub_query.id)
        else:
            self._move_up_above(sub_query.id)

    def draw_as(self, sampling: SamplingParams) -> None:
        """Use a query's own sampling for the nodes added from now on, within their token limit.

        For a direct plan, whose one response is the answer.
        """
        most = self._engine.nodes.sampling.max_tokens
        self._sampling = replace(sampling, max_tokens=min(sampling.max_tokens, most))

    async def restart(self, graph: QueryGraph) -> None:
        """Cancel all nodes and start again with another graph, because the plan was replaced.

        What both plans ask an expert in the same words is asked once.
        """
        tasks = tuple(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._reserve = self.answered()
        self._kept |= self._outcomes
        self.graph = graph
        for state in (self.routes, self._tasks, self._times, self._results, self._slots):
            state.clear()
        self._errors.clear()

    def results(self) -> tuple[NodeResult, ...]:
        """A result for each node, by id. A node that has not ended, or never began, counts as
        cancelled."""
        return tuple(
            self._results.get(sub_query.id) or self._cancelled(sub_query.id)
            for sub_query in self.graph
        )

    def bound(self) -> Bound:
        """The speed-up that the graph allows and the one reached, over the nodes that ran."""
        times = {r.id: (r.start_s, r.end_s) for r in self.results() if r.end_s > r.start_s}
        return self.graph.bound(times)

    def responses(self, node_ids: Iterable[int]) -> KnownPairs:
        """(question, response) of these nodes; None where there is no response."""
        return self._known(node_ids)

    def leaves(self) -> KnownPairs:
        """(question, response) of the leaves; None where there is no response."""
        return self._known(self.graph.leaves)

    def answered(self) -> KnownPairs:
        """(question, response) of all nodes with a response; if there is none, those from before
        the restart."""
        pairs = self._known(sub_query.id for sub_query in self.graph)
        return tuple(pair for pair in pairs if pair[1] is not None) or self._reserve

    @property
    def is_idle(self) -> bool:
        """Whether every node that was added has ended."""
        return all(sub_query.id in self._results for sub_query in self.graph)

    def has_ended(self, node_id: int) -> bool:
        """Whether the node has ended, with or without a response."""
        return node_id in self._results

    async def ended(self, node_id: int) -> None:
        """Wait for the end of a node whose parents have all ended."""
        await asyncio.wait([self._tasks[node_id]])

    @property
    def first_error(self) -> BackendError | None:
        """The error of the first node that failed after all attempts; None if no node failed."""
        return self._errors[0] if self._errors else None

    def _move_up_above(self, node_id: int) -> None:
        """Promote the waiting ancestors of a new node: it can lengthen their remaining path."""
        for each in self.graph.ancestors(node_id) if self._slots else ():
            slot = self._slots.get(each)
            if slot is not None:
                slot.promote(self._slot(each, self._expert_of(each)))

    def _slot(self, node_id: int, expert: Expert) -> AdmissionTicket:
        path, work = self.graph.remaining_path(node_id), self.graph.remaining_work
        return self._engine.admission.slot(expert.model, self._live.seq, node_id, path, work)

    def _launch(self, node_id: int) -> None:
        self._times[node_id] = _Times(ready_s=self._live.elapsed_s())
        self._tasks[node_id] = self._group.create_task(self._run(node_id))

    async def _run(self, node_id: int) -> None:
        self.graph.start(node_id)
        try:
            result = await self._answer(node_id)
        except asyncio.CancelledError:
            self._record(self._cancelled(node_id))
            raise
        self._record(result)
        for child in self.graph.done(node_id):
            self._launch(child)

    async def _answer(self, node_id: int) -> NodeResult:
        """The node's result, whatever happens. Raises only CancelledError."""
        parents = self._known(self.graph[node_id].parents)
        expert = self._expert_of(node_id)
        if parents and all(response is None for _, response in parents):
            return self._ended(node_id, expert, "skipped", error="no parent has a response")
        error: BackendError | None = None
        for attempt, candidate in enumerate(self._candidates(expert)):
            if isinstance(error, BackendUnavailable):
                # Safe to send again: a response is used only when it is complete.
                await asyncio.sleep(self._engine.nodes.retry_wait_s)
            elif error is not None and candidate is expert:
                continue  # refused or stalled: another attempt would fail too
            try:
                return await self._attempt(node_id, attempt, candidate, parents)
            except BackendError as failure:
                error = failure
        assert error is not None
        self._errors.append(error)
        return self._ended(node_id, expert, "failed", error=str(error))

    def _candidates(self, expert: Expert) -> tuple[Expert, ...]:
        """The experts to ask, in order. For the base there is no other expert to fall back to."""
        base = self._engine.base
        return (expert, expert) if expert is base else (expert, expert, base)

    async def _attempt(
        self, node_id: int, attempt: int, expert: Expert, parents: KnownPairs
    ) -> NodeResult:
        """Ask one expert once. Raises BackendError, also for a timeout or an empty response."""
        request = GenerateRequest(
            f"{self._live.id}-{node_id}-{attempt}",
            self._prompt(expert, self.graph[node_id].text, parents),
            self._sampling,
            expert.model,
            expert.adapter_id,
            wants_log_probs=True,
            query_id=self._live.id,
            node_id=node_id,
        )
        if excess := await excess_of_prompt(
            self._engine.backend, request.model, request.prompt, request.sampling.max_tokens
        ):
            raise BackendRejected(
                f"sub-query {node_id} has, with its parents' responses, {excess}",
                query_id=self._live.id,
                node_id=node_id,
            )
        key = (expert.name, request.prompt, request.sampling)
        outcome = self._kept.get(key) or await self._generate(request, node_id, expert)
        self._outcomes[key] = outcome
        return self._done(node_id, expert, outcome, self._response(node_id, expert, outcome.text))

    async def _generate(self, request: GenerateRequest, node_id: int, expert: Expert) -> Outcome:
        """The engine's response, counted in the query's usage. Raises BackendError."""
        engine, live = self._engine, self._live
        self._slots[node_id] = slot = self._slot(node_id, expert)
        used: RequestUsage | None = None
        try:
            # The timeout counts from the start at the engine: waiting in the queue is not late.
            async with asyncio.timeout(None) as limit:

                def started(at_s: float) -> None:
                    nonlocal used
                    used = used or live.usage.request()
                    at_s = self._mark_start(node_id, at_s)
                    if limit.when() is None:
                        live.emit(NodeStarted(node_id, expert.name, at_s))
                        limit.reschedule(live.start_s + live.elapsed_s() + engine.nodes.timeout_s)

                outcome = await engine.flights.generate(request, slot, started)
        except TimeoutError:
            reason = f"no response within {engine.nodes.timeout_s:g} s"
            raise BackendError(reason, query_id=live.id, node_id=node_id) from None
        if used is not None and outcome.is_shared:
            live.usage.discard(used)
        elif used is not None:
            used.add(outcome.last)
        return outcome

    def _mark_start(self, node_id: int, at_s: float) -> float:
        """Record that the node reached the engine at `at_s` of the loop's clock.

        The first such time is the node's start. Returns `at_s` in seconds since the query's start.
        """
        self._slots.pop(node_id, None)
        times = self._times[node_id]
        at_s = max(at_s - self._live.start_s, times.ready_s)
        times.start_s = at_s if times.start_s is None else times.start_s
        return at_s

    def _response(self, node_id: int, expert: Expert, text: str) -> str:
        """The engine's text in the sub-query's spelling, without a loop at its end. Raises
        BackendError if no text is left."""
        text = text.strip()
        if self._engine.nodes.cuts_loops:
            text = cut_loop(text) or text
        text = spelled(expert, self.graph[node_id].text).back(text)
        if not text:
            raise BackendError("the response is empty", query_id=self._live.id, node_id=node_id)
        return text

    def _done(self, node_id: int, expert: Expert, outcome: Outcome, response: str) -> NodeResult:
        """The result of a node that has its response."""
        result = self._ended(node_id, expert, "done")
        usage = outcome.last.usage or Usage()
        first_s = outcome.started_s - self._live.start_s + usage.first_token_s
        return replace(
            result,
            response=response,
            finish_reason=outcome.last.finish_reason,
            usage=usage,
            is_shared=outcome.is_shared,
            log_probs=outcome.last.log_probs,
            first_token_s=min(max(first_s, result.start_s), result.end_s)
            if usage.first_token_s
            else result.end_s,
        )

    def _expert_of(self, node_id: int) -> Expert:
        return self._engine.experts[self.routes[node_id].expert]

    def _prompt(
        self, expert: Expert, sub_query: str, parents: Sequence[tuple[str, str | None]]
    ) -> Prompt:
        return node_prompt(expert, sub_query, parents, self._engine.nodes.template)

    def _record(self, result: NodeResult) -> None:
        self._results[result.id] = result
        self._live.emit(NodeFinished(result))

    def _cancelled(self, node_id: int) -> NodeResult:
        expert = self._expert_of(node_id)
        return self._ended(node_id, expert, "cancelled", error="cancelled before its end")

    def _ended(
        self, node_id: int, expert: Expert, status: NodeStatus, error: str | None = None
    ) -> NodeResult:
        end_s = self._live.elapsed_s()
        times = self._times.get(node_id, _Times(end_s))
        start_s = end_s if times.start_s is None else times.start_s
        return NodeResult(
            node_id,
            expert.name,
            status,
            error=error,
            ready_s=times.ready_s,
            start_s=start_s,
            first_token_s=end_s,
            end_s=end_s,
        )

    def _known(self, node_ids: Iterable[int]) -> KnownPairs:
        pairs: list[tuple[str, str | None]] = []
        for node_id in node_ids:
            result = self._results.get(node_id)
            response = result.response if result and result.status == "done" else None
            pairs.append((self.graph[node_id].text, response))
        return tuple(pairs)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
