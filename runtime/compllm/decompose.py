"""Query -> stream of sub-queries: the first step of the path.

The generator writes plan lines under a guide, greedily and streamed; each line is yielded the
moment it ends, so that it can be routed and sent while the next is still being written. A line that
is written again is left out (copies.py). A plan that breaks a rule, a generator that fails or
stalls: the one-node plan takes its place, with the reason.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from compllm.backend import Backend, Chunk, GenerateRequest, OnChunk, Prompt, open_chunks
from compllm.copies import CopyFilter
from compllm.errors import BackendError, PlanError
from compllm.plan import PlanLimits, PlanParser, fallback_plan, plan_guide
from compllm.prompts import CHATML, ChatTemplate, generator_prompt
from compllm.types import PLAN_NODE, Plan, Query, SamplingParams, SubQuery


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


async def decompose(
    query: Query, backend: Backend, generator: Generator, on_chunk: OnChunk = lambda _: None
) -> AsyncGenerator[SubQuery | Plan, None]:
    """Yield each sub-query when its line ends, last the Plan of them all.

    When that Plan `is_fallback`, it replaces every sub-query yielded before. on_chunk: is called
    with each chunk of the request. Raises nothing of its own.
    """
    parser = PlanParser(generator.limits)
    copies = CopyFilter()
    sub_queries: list[SubQuery] = []
    log_probs: list[float] = []

    def received(chunk: Chunk) -> None:
        log_probs.extend(chunk.log_probs)
        on_chunk(chunk)

    deadline = asyncio.get_running_loop().time() + generator.timeout_s
    try:
        async with open_chunks(backend, generator.request(query)) as chunks:
            async for line in _lines(chunks, parser, deadline, received):
                if (kept := copies.take(line)) is not None:
                    sub_queries.append(kept)
                    yield kept
                elif copies.is_loop:
                    break
        plan = Plan(
            tuple(sub_queries),
            is_cut=parser.is_cut,
            num_copies=copies.num_copies,
            log_probs=tuple(log_probs),
        )
    except TimeoutError:
        reason = f"the generator did not finish within {generator.timeout_s:g} s"
        plan = fallback_plan(query.text, reason)
    except (PlanError, BackendError) as error:
        plan = fallback_plan(query.text, str(error))
    yield plan


async def _lines(
    chunks: AsyncIterator[Chunk], parser: PlanParser, deadline: float, on_chunk: OnChunk
) -> AsyncGenerator[SubQuery, None]:
    is_open = True
    while is_open:
        # Around the wait alone: a timeout scope must not span a yield.
        async with asyncio.timeout_at(deadline):
            chunk = await anext(chunks, None)
        if chunk is None:
            raise BackendError("the plan broke off before its end")
        on_chunk(chunk)
        is_open = chunk.finish_reason is None
        if chunk.finish_reason == "length":
            raise PlanError("the generator was cut off at its token limit")
        lines = list(parser.feed(chunk.text)) + ([] if is_open else list(parser.finish()))
        for line in lines:
            yield line
