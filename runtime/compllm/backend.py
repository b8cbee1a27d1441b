"""The narrow protocol between the path and an engine, and what passes over it.

The path builds a `GenerateRequest`, any `Backend` yields `Chunk`s for it: `triton.TritonBackend`
over gRPC, `testing.ScriptedBackend` in tests and scheduler benchmarks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, runtime_checkable

from compllm.errors import BackendError
from compllm.types import FinishReason, SamplingParams, Usage

GuideType = Literal["regex", "json", "json_schema", "ebnf_grammar"]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a prompt. Template segments are ours and may hold the model's special tokens; in
    the others (a user's or a model's text) a special token's spelling is tokenised as plain
    characters."""

    text: str
    is_template: bool = False
    # Of whom the text is (system, user, assistant), for an engine with a chat template of its own.
    role: str = field(default="", compare=False)


Prompt = tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Guide:
    """A constraint on the output, as TensorRT-LLM's guided_decoding_guide(_type) takes it."""

    type: GuideType
    text: str


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One generation. `id` is unique among the requests in flight of one process."""

    id: str
    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    model: str = "tensorrt_llm"
    adapter_id: int | None = None  # lora_task_id; None is the base
    guide: Guide | None = None
    is_streamed: bool = False  # False: one chunk with everything
    # The engine's own times and KV blocks, in `Chunk.usage`; in each response where it is streamed.
    wants_perf: bool = True
    wants_log_probs: bool = False  # an engine that has none leaves `Chunk.log_probs` empty
    query_id: str = ""  # of the query that sends it, if any
    node_id: int | None = None  # in that query; types.PLAN_NODE and ANSWER_NODE are such ids


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of output. Exactly the last one has `finish_reason` and `usage`."""

    text: str  # new text only
    num_tokens: int = 0  # new tokens in it
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    log_probs: tuple[float, ...] = ()  # natural, one a new token, where wanted; else none


OnChunk = Callable[[Chunk], None]


class Backend(Protocol):
    """An engine that generates text. Closing the iterator (or cancelling its task) cancels the
    request.

    Raises BackendUnavailable, BackendRejected or BackendError; never a foreign error.
    """

    def generate(self, request: GenerateRequest) -> AsyncIterator[Chunk]: ...

    async def aclose(self) -> None: ...


@asynccontextmanager
async def open_chunks(
    backend: Backend, request: GenerateRequest
) -> AsyncIterator[AsyncIterator[Chunk]]:
    """The request's chunks; leaving the block before the last one cancels the request there and
    then."""
    chunks = backend.generate(request)
    try:
        yield chunks
    finally:
        aclose = getattr(chunks, "aclose", None)
        if aclose is not None:
            await aclose()


async def collect(backend: Backend, request: GenerateRequest) -> tuple[str, Chunk]:
    """The whole text, and the last chunk with its finish_reason and usage, and with the log_probs
    of all.

    Raises what the backend raises, and BackendError when it ends without a last chunk.
    """
    pieces: list[str] = []
    log_probs: list[float] = []
    async with open_chunks(backend, request) as chunks:
        async for chunk in chunks:
            pieces.append(chunk.text)
            log_probs += chunk.log_probs
            if chunk.finish_reason is not None:
                return "".join(pieces), replace(chunk, log_probs=tuple(log_probs))
    raise BackendError(f"the response to request {request.id!r} broke off before its end")


@runtime_checkable
class TellsLimits(Protocol):
    """A Backend that knows what its engines batch."""

    def max_batch_size(self, model: str) -> int | None: ...


@runtime_checkable
class CountsTokens(Protocol):
    """A Backend that has the model's tokenizer, and knows how long a sequence its engines hold."""

    async def num_tokens(self, prompt: Prompt) -> int: ...

    def max_seq_len(self, model: str) -> int | None: ...


def max_batch_size(backend: Backend, model: str) -> int | None:
    """Requests that this engine computes in one step; None where the backend does not know."""
    return backend.max_batch_size(model) if isinstance(backend, TellsLimits) else None
