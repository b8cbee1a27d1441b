"""A scripted Backend and a hashing encoder: the path without an engine, for tests and scheduler
benchmarks.

Shipped with the package, as httpx ships its mock transport, so that users can test what they build
on it. A run on these measures the runtime's own overhead, never a model.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from compllm.backend import Chunk, GenerateRequest
from compllm.errors import BackendError
from compllm.prompts import prompt_text
from compllm.types import FinishReason, Usage

ANY: Literal["any"] = "any"


@dataclass(frozen=True, slots=True)
class Reply:
    """One rule of a script: which requests it answers, and how.

    A tuple as `text` is streamed piece by piece. `error` is raised after the text given (none by
    default). `gate` holds the reply back until it is set: an order fixed by events, not by
    sleeping.
    """

    text: str | tuple[str, ...] = ""
    contains: str = ""  # the prompt must hold this
    adapter_id: int | Literal["any"] | None = ANY
    is_guided: bool | None = None  # True: only requests with a guide (the generator's); None: all
    match: Callable[[GenerateRequest], bool] | None = None
    error: BackendError | None = None
    gate: asyncio.Event | None = None
    piece_gates: tuple[asyncio.Event, ...] = ()  # piece i waits for the i-th event, if there is one
    delay_s: float = 0.0  # before the first piece
    piece_delay_s: float = 0.0  # before each further piece
    times: int | None = None  # answer this number of requests, then leave them to later rules
    usage: Usage | None = None
    log_probs: tuple[float, ...] = ()  # of its words, for requests that want them
    finish_reason: FinishReason = "stop"

    def fits(self, request: GenerateRequest) -> bool:
        return (
            (self.adapter_id == ANY or self.adapter_id == request.adapter_id)
            and (self.is_guided is None or self.is_guided == (request.guide is not None))
            and self.contains in prompt_text(request.prompt)
            and (self.match is None or self.match(request))
        )


@dataclass(slots=True)
class Recorded:
    """A request that arrived, and what became of it. Times are of the event loop's clock."""

    request: GenerateRequest
    started_s: float
    ended_s: float | None = None
    outcome: Literal["running", "done", "failed", "cancelled"] = "running"
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def text(self) -> str:
        return prompt_text(self.request.prompt)


class ScriptedBackend:
    """A Backend that answers by the first Reply that fits. A request that none fits fails the
    test."""

    def __init__(self, *replies: Reply) -> None:
        self._replies = replies
        self._num_used = [0] * len(replies)
        self._arrived = asyncio.Condition()
        self.requests: list[Recorded] = []
        self.max_running = 0  # most requests in flight at once
        self.is_closed = False

    @property
    def num_running(self) -> int:
        return sum(recorded.outcome == "running" for recorded in self.requests)

    def find(self, contains: str) -> list[Recorded]:
        """The requests whose prompt holds this text, in order of arrival."""
        return [recorded for recorded in self.requests if contains in recorded.text]

    async def wait_for(self, contains: str, count: int = 1) -> Recorded:
        """Wait until `count` requests with this text have arrived; return the last of them."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.find(contains)) >= count)
        return self.find(contains)[count - 1]

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        loop = asyncio.get_running_loop()
        recorded = Recorded(request, loop.time())
        self.requests.append(recorded)
        self.max_running = max(self.max_running, self.num_running)
        async with self._arrived:
            self._arrived.notify_all()
        try:
            async for chunk in self._play(self._choose(request), request):
                if chunk.finish_reason is not None:
                    recorded.outcome = "done"
                yield chunk
        except BackendError:
            recorded.outcome = "failed"
            raise
        finally:
            if recorded.outcome == "running":  # closed or cancelled before its last chunk
                recorded.outcome = "cancelled"
            recorded.ended_s = loop.time()
            recorded.ended.set()

    async def aclose(self) -> None:
        self.is_closed = True

    def _choose(self, request: GenerateRequest) -> Reply:
        for index, reply in enumerate(self._replies):
            is_spent = reply.times is not None and self._num_used[index] >= reply.times
            if not is_spent and reply.fits(request):
                self._num_used[index] += 1
                return reply
        raise AssertionError(f"no scripted reply fits: {prompt_text(request.prompt)!r}")

    async def _play(self, reply: Reply, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        if reply.gate is not None:
            await reply.gate.wait()
        log_probs = reply.log_probs if request.wants_log_probs else ()
        pieces = (reply.text,) if isinstance(reply.text, str) else reply.text
        pieces = tuple(piece for piece in pieces if piece)
        for index, piece in enumerate(pieces):
            if index < len(reply.piece_gates):
                await reply.piece_gates[index].wait()
            delay_s = reply.piece_delay_s if index else reply.delay_s
            if delay_s:
                await asyncio.sleep(delay_s)
            if request.is_streamed:
                num_tokens = len(piece.split())
                yield Chunk(piece, num_tokens, log_probs=log_probs[:num_tokens])
                log_probs = log_probs[num_tokens:]
        if reply.error is not None:
            raise reply.error
        num_tokens = sum(len(piece.split()) for piece in pieces)
        text = "" if request.is_streamed else "".join(pieces)
        usage = reply.usage or Usage(len(prompt_text(request.prompt).split()), num_tokens)
        yield Chunk(text, num_tokens if text else 0, reply.finish_reason, usage, log_probs)


class HashingEncoder:
    """Bag-of-words sentence vectors without a model: equal words, near vectors. Deterministic."""

    id = "hashing-64"
    dim = 64

    def __init__(self) -> None:
        self.num_calls = 0

    async def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        self.num_calls += 1
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()) or [""]:
                digest = hashlib.sha256(word.encode(errors="replace")).digest()
                row[digest[0] % self.dim] += 1.0
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows
