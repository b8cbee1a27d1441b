"""A Backend that makes the engine do a replay's work: the gold plan word by word, nodes of known
length. Between the path and the real backend.

Every token is a true step of the real engine: the plan is held to its text by a guide that allows
nothing else, a node cannot end before its length nor go on beyond it. The path above does not know.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from compllm.backend import (
    Backend,
    Chunk,
    GenerateRequest,
    Guide,
    Prompt,
    max_batch_size,
    open_chunks,
)
from compllm.plan import format_plan
from compllm.types import ANSWER_NODE, PLAN_NODE, Plan, SamplingParams

_META = re.compile(r"[\\^$.*+?()\[\]{}|]")
_BLANK = "(blank)"


@dataclass(slots=True)
class ForcedWork:
    """What one query is made to do, and the tokens of its plan as the engine wrote them."""

    plan: Plan
    num_tokens: Mapping[int, int]  # by node id
    # Put before each sub-query and question: an engine that ran the same graph before has nothing
    # of it in its cache then.
    salt: str = ""
    is_plan_streamed: bool = True  # False: the path gets the plan when its last line is written
    # What came of it.
    num_plan_tokens: int = 0
    line_tokens: list[int] = field(default_factory=list)  # of the plan, when each line had ended


class ForcedBackend:
    """Passes requests on to the engine, those of watched queries with their forced work."""

    def __init__(self, backend: Backend) -> None:
        self.inner = backend
        self._work: dict[str, ForcedWork] = {}

    @contextmanager
    def forced(self, query_id: str, work: ForcedWork) -> Iterator[ForcedWork]:
        """Within the block the query does this work."""
        self._work[query_id] = work
        try:
            yield work
        finally:
            del self._work[query_id]

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """See `Backend.generate`."""
        work = self._work.get(request.query_id)
        if work is None:
            chunks = self._passed(request)
        elif request.node_id == PLAN_NODE:
            chunks = self._planned(request, work)
        else:
            chunks = self._answered(request, work)
        async for chunk in chunks:
            yield chunk

    async def aclose(self) -> None:
        await self.inner.aclose()

    def max_batch_size(self, model: str) -> int | None:
        """See `backend.TellsLimits`."""
        return max_batch_size(self.inner, model)

    async def _passed(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        async with open_chunks(self.inner, request) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _planned(
        self, request: GenerateRequest, work: ForcedWork
    ) -> AsyncGenerator[Chunk, None]:
        text = format_plan(work.plan.sub_queries).removesuffix("\n")
        forced = replace(
            request,
            prompt=salted(request.prompt, work.salt),
            # No tokenizer makes more tokens than bytes; the guide ends the text before.
            sampling=SamplingParams(max_tokens=len(text.encode()) + 1),
            guide=exact_guide(text),
            wants_perf=True,  # a bound counts what was prefilled
        )
        held: list[Chunk] = []
        async for chunk in self._passed(forced):
            work.num_plan_tokens += chunk.num_tokens
            work.line_tokens += [work.num_plan_tokens] * chunk.text.count("\n")
            if chunk.usage is not None:
                work.line_tokens.append(work.num_plan_tokens)
            if work.is_plan_streamed:
                yield chunk
            else:
                held.append(chunk)
        for chunk in held:
            yield chunk

    async def _answered(
        self, request: GenerateRequest, work: ForcedWork
    ) -> AsyncGenerator[Chunk, None]:
        if request.node_id is not None and request.node_id != ANSWER_NODE:
            count = work.num_tokens[request.node_id]
            sampling = replace(request.sampling, max_tokens=count, min_tokens=count)
            request = replace(request, sampling=sampling)
        request = replace(request, prompt=salted(request.prompt, work.salt), wants_perf=True)
        is_blank = True
        async for chunk in self._passed(request):
            is_blank = is_blank and not chunk.text.strip()
            # These tokens may be nothing but white space, which the path takes for a failure.
            is_odd = is_blank and chunk.finish_reason is not None
            yield replace(chunk, text=_BLANK) if is_odd else chunk


def exact_guide(text: str) -> Guide:
    """A regex that allows this text and no other."""
    escaped = _META.sub(lambda found: "\\" + found[0], text)
    return Guide("regex", escaped.replace("\n", r"\n"))


def salted(prompt: Prompt, salt: str) -> Prompt:
    """The prompt with the salt before what the user says: shared texts before it stay shared."""
    if not salt:
        return prompt
    last = max(index for index, segment in enumerate(prompt) if not segment.is_template)
    user = replace(prompt[last], text=f"{salt} {prompt[last].text}")
    return (*prompt[:last], user, *prompt[last + 1 :])
