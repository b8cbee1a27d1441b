"""Query, leaf responses -> stream of text: the last step of the path.

The aggregator reads the query and the leaves' questions and responses, nothing else (the paper's
rule). The policy says when: `always`; `auto`, where a single leaf is passed through; `never`, where
the responses are joined as they are.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from compllm.backend import Backend, GenerateRequest, OnChunk, Prompt, open_chunks
from compllm.errors import BackendError
from compllm.loops import MIN_COPIES, LoopGuard
from compllm.prompts import CHATML, ChatTemplate, aggregator_prompt, one_line
from compllm.types import (
    ANSWER_NODE,
    ComposePolicy,
    FinishReason,
    NodeResult,
    Query,
    SamplingParams,
    SubQuery,
)

JOINT = "; "  # between responses
_SHORT = 24  # characters of a response that an answer must hold as it is
OnEnd = Callable[[FinishReason], None]


@dataclass(frozen=True, slots=True)
class Aggregator:
    """The model that composes, and when it does."""

    policy: ComposePolicy = "auto"
    model: str = "tensorrt_llm"
    adapter_id: int | None = None
    template: ChatTemplate = CHATML
    # Of the answer, unless the query brings its own.
    sampling: SamplingParams = field(default_factory=SamplingParams)
    cuts_loops: bool = True
    keeps_all: bool = True  # short responses that the model left out are put behind its text

    def needs_model(self, leaves: Sequence[tuple[str, str | None]]) -> bool:
        """Whether these leaves go through the model at all."""
        if all(response is None for _, response in leaves):
            return False
        return self.policy == "always" or (self.policy == "auto" and len(leaves) > 1)

    def request(self, query: Query, leaves: Sequence[tuple[str, str | None]]) -> GenerateRequest:
        return GenerateRequest(
            f"{query.id}-answer",
            answer_prompt(query, leaves, aggregator=self),
            self.sampling if query.sampling == SamplingParams() else query.sampling,
            self.model,
            self.adapter_id,
            is_streamed=True,
            wants_perf=False,
            query_id=query.id,
            node_id=ANSWER_NODE,
        )


async def compose(
    query: Query,
    leaves: Sequence[tuple[str, str | None]],
    backend: Backend,
    aggregator: Aggregator,
    on_end: OnEnd = lambda _: None,
    on_chunk: OnChunk = lambda _: None,
) -> AsyncGenerator[str, None]:
    """Yield the answer's text as it is written. `leaves`: (question, response); None: it has none.

    Where a model writes, on_end is called with the reason of its end, and on_chunk with each chunk.
    Raises BackendError.
    """
    if not aggregator.needs_model(leaves):
        yield join(leaves)
        return
    request = aggregator.request(query, leaves)
    said = ""
    # As many leaves may have the same response: only more copies than that are a loop.
    text = LoopGuard(max(MIN_COPIES, len(leaves) + 1))
    async with open_chunks(backend, request) as chunks:
        async for chunk in chunks:
            on_chunk(chunk)
            is_last = chunk.finish_reason is not None
            new_text = chunk.text
            if aggregator.cuts_loops:
                new_text = text.push(chunk.text, is_last=is_last)
            said += new_text
            if new_text:
                yield new_text
            if text.is_looping or is_last:
                if aggregator.keeps_all and (left_out := _left_out(said, leaves)):
                    yield JOINT + left_out
                reason = "length" if text.is_looping else chunk.finish_reason
                on_end(reason or "stop")
                return
    raise BackendError("the answer broke off before its end")


def _left_out(said: str, leaves: Sequence[tuple[str, str | None]]) -> str:
    """The short responses that do not stand in the text, joined. Empty where none stands in it: the
    text is then a sentence of the model's own. A long response may be paraphrased."""
    text = said.casefold()
    short = [response for _, response in leaves if response and len(response) <= _SHORT]
    # As a whole: 5 does not stand in 15.
    words = [re.escape(response.rstrip(".").casefold()) for response in short]
    stands = [bool(re.search(rf"(?<!\w){each}(?!\w)", text)) for each in words]
    if not any(stands):
        return ""
    missing = [response for response, is_in in zip(short, stands, strict=True) if not is_in]
    return JOINT.join(dict.fromkeys(missing))


def answer_prompt(
    query: Query, leaves: Sequence[tuple[str, str | None]], *, aggregator: Aggregator
) -> Prompt:
    """What the aggregator reads; a trained one is shown no example."""
    is_few_shot = aggregator.adapter_id is None
    return aggregator_prompt(query.text, leaves, aggregator.template, is_few_shot=is_few_shot)


def joined_end(sub_queries: Sequence[SubQuery], nodes: Sequence[NodeResult]) -> FinishReason:
    """Why an answer that no model wrote ends: the leaves' responses, whole unless one was cut."""
    parents = {parent for sub_query in sub_queries for parent in sub_query.parents}
    is_cut = any(node.finish_reason == "length" for node in nodes if node.id not in parents)
    return "length" if is_cut else "stop"


def join(pairs: Sequence[tuple[str, str | None]], *, is_whole: bool = True) -> str:
    """The responses without a model: the only one as it is, one of several after its question.

    is_whole: the pairs are all that was asked, so that a single one answers the query itself.
    """
    known = [(question, response) for question, response in pairs if response is not None]
    if is_whole and len(pairs) == len(known) == 1:
        return known[0][1]
    return "\n".join(f"{one_line(question)} {one_line(response)}" for question, response in known)
