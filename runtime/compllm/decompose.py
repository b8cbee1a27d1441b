"""Query -> stream of sub-queries: the first step of the path.

The generator writes plan lines under a guide, greedily and streamed; each line is yielded the
moment it ends, so that it can be routed and sent while the next is still being written. A line that
is written again is left out (copies.py). Where the generator is not sure, other plans are drawn,
and a likelier one takes the plan's place (plan_draws.py). A plan that breaks a rule, a generator
that fails or stalls: the one-node plan takes its place, with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from dataclasses import dataclass, field, replace

from compllm.backend import Backend, Chunk, GenerateRequest, OnChunk, Prompt, open_chunks
from compllm.copies import CopyFilter
from compllm.errors import BackendError, PlanError
from compllm.plan import PlanLimits, PlanParser, fallback_plan, plan_guide
from compllm.plan_draws import PlanDraws
from compllm.prompts import CHATML, ChatTemplate, generator_prompt
from compllm.types import PLAN_NODE, Plan, Query, SamplingParams, SubQuery

OnLogProbs = Callable[[Sequence[float]], None]


@dataclass(frozen=True, slots=True)
class Generator:
    """The model that writes plans, and what it may write."""

    limits: PlanLimits
    model: str = "tensorrt_llm"
    adapter_id: int | None = None  # None: the base, shown examples
    template: ChatTemplate = CHATML
    max_tokens: int = 160
    timeout_s: float = 30.0
    is_guided: bool = True
    num_draws: int = 6  # of other plans, where it is not sure; 0: none

    def prompt(self, question: str) -> Prompt:
        """What it reads; a trained one is shown no examples."""
        return generator_prompt(question, self.template, is_few_shot=self.adapter_id is None)

    def request(self, query: Query) -> GenerateRequest:
        is_trained = self.adapter_id is not None
        return GenerateRequest(
            f"{query.id}-plan",
            self.prompt(query.text),
            SamplingParams(max_tokens=self.max_tokens),
            self.model,
            self.adapter_id,
            plan_guide(self.limits.max_nodes, is_question_only=not is_trained, marks_cut=True)
            if self.is_guided
            else None,
            is_streamed=True,
            wants_perf=False,
            wants_log_probs=True,
            query_id=query.id,
            node_id=PLAN_NODE,
        )


@dataclass(frozen=True, slots=True)
class Sending:
    """What the requests of a plan need of the query that sends them."""

    # Makes what is called with each chunk of one more request.
    new_counter: Callable[[], OnChunk] = lambda: lambda _: None
    slot: Callable[[], AbstractAsyncContextManager[object]] = nullcontext  # a place at the engine


async def decompose(
    query: Query, backend: Backend, generator: Generator, sending: Sending | None = None
) -> AsyncGenerator[SubQuery | Plan, None]:
    """Yield each sub-query when its line ends, last the Plan of them all.

    When that Plan `is_fallback` or `is_drawn`, it replaces every sub-query yielded before. Raises
    what the first slot raises (a full queue), and nothing of its own.
    """
    sending = sending or Sending()
    deadline = asyncio.get_running_loop().time() + generator.timeout_s
    request = generator.request(query)

    async def write(number: int, on_log_probs: OnLogProbs) -> Plan:
        drawn = replace(
            request,
            id=f"{request.id}-{number}",
            # At temperature 1 the tokens' log-probabilities are those of the plan.
            sampling=replace(request.sampling, temperature=1.0, seed=number),
        )
        async with sending.slot():
            writing = _Writing(PlanParser(generator.limits), on_log_probs)
            written = _lines(drawn, backend, writing, deadline, sending.new_counter())
            async with aclosing(written) as lines:
                async for _ in lines:
                    pass
            return writing.plan()

    async with aclosing(PlanDraws(generator.num_draws, write)) as draws:
        writing = _Writing(PlanParser(generator.limits), draws.watch)
        greedy: Plan | None = None
        reason = ""
        async with sending.slot():
            try:
                written = _lines(request, backend, writing, deadline, sending.new_counter())
                async with aclosing(written) as lines:
                    async for line in lines:
                        yield line
                greedy = writing.plan()
            except TimeoutError:
                reason = f"the generator did not finish within {generator.timeout_s:g} s"
            except (PlanError, BackendError) as error:
                reason = str(error)
        plan = await draws.likeliest(greedy, deadline)
    yield plan or fallback_plan(query.text, reason)


@dataclass(slots=True)
class _Writing:
    """A plan while it is written."""

    parser: PlanParser
    on_log_probs: OnLogProbs
    copies: CopyFilter = field(default_factory=CopyFilter)
    sub_queries: list[SubQuery] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def add(self, log_probs: Sequence[float]) -> None:
        self.log_probs.extend(log_probs)
        self.on_log_probs(log_probs)

    def plan(self) -> Plan:
        return Plan(
            tuple(self.sub_queries),
            is_cut=self.parser.is_cut,
            num_copies=self.copies.num_copies,
            log_probs=tuple(self.log_probs),
        )


async def _lines(
    request: GenerateRequest,
    backend: Backend,
    writing: _Writing,
    deadline: float,
    on_chunk: OnChunk,
) -> AsyncGenerator[SubQuery, None]:
    """The sub-queries of a plan as they are written, without copies. Raises TimeoutError, PlanError
    and BackendError."""
    async with open_chunks(backend, request) as chunks:
        async for line in _parsed(chunks, writing, deadline, on_chunk):
            if (kept := writing.copies.take(line)) is not None:
                writing.sub_queries.append(kept)
                yield kept
            elif writing.copies.is_loop:
                break


async def _parsed(
    chunks: AsyncIterator[Chunk], writing: _Writing, deadline: float, on_chunk: OnChunk
) -> AsyncGenerator[SubQuery, None]:
    is_open = True
    while is_open:
        # Around the wait alone: a timeout scope must not span a yield.
        async with asyncio.timeout_at(deadline):
            chunk = await anext(chunks, None)
        if chunk is None:
            raise BackendError("the plan broke off before its end")
        on_chunk(chunk)
        writing.add(chunk.log_probs)
        is_open = chunk.finish_reason is None
        if chunk.finish_reason == "length":
            raise PlanError("the generator was cut off at its token limit")
        lines = list(writing.parser.feed(chunk.text))
        lines += [] if is_open else writing.parser.finish()
        for line in lines:
            yield line
