"""One generation over HTTP with Server-Sent Events: what both kinds of OpenAI's interface share.

openai.py (completions: the path's own engine) and endpoints.py (chat: an expert's own server) say
what a request holds; openai_wire.py reads the events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import httpx

from compllm.backend import Chunk, GenerateRequest
from compllm.backends import openai_wire
from compllm.backends.attempts import Attempts, ClientOptions, OnRequest
from compllm.backends.client_stats import RequestStats
from compllm.backends.openai_wire import Piece
from compllm.backends.tokenizer import StopStrings
from compllm.errors import BackendUnavailable, ConfigError
from compllm.types import FinishReason, Usage

_EVENT, _LAST_EVENT = "data:", "[DONE]"


class HttpEngine(ABC):
    """Generates through one server. One per event loop; any number of requests.

    key_setting: which setting names the server's key, for the error that asks for it.
    """

    path: str  # below /v1/
    key_setting: str

    def __init__(
        self,
        client: httpx.AsyncClient,
        options: ClientOptions | None = None,
        on_request: OnRequest | None = None,
    ) -> None:
        self.attempts = Attempts(options, on_request)
        self.client = client

    @abstractmethod
    async def fields(self, request: GenerateRequest) -> tuple[dict[str, Any], int]:
        """What is sent, and the number of the prompt's tokens. Raises BackendRejected."""

    @abstractmethod
    def count(self, text: str) -> int:
        """Tokens of a piece of the response."""

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """See `Backend.generate`."""
        with self.attempts.recorded(request) as stats:
            fields, num_ids = await self.fields(request)
            first, pieces = await self.attempts.begun(partial(self._attempt, fields, stats), stats)
            stops = StopStrings(request.sampling.stop)
            reason: FinishReason | None = None
            whole = held = ""
            log_probs: tuple[float, ...] = ()
            counts: tuple[int | None, int | None] = (None, None)
            async with aclosing(pieces):
                piece: Piece | None = first
                while piece is not None and not stops.is_stopped:
                    held += stops.push(piece.text)
                    log_probs += piece.log_probs
                    reason = piece.finish_reason or reason
                    counts = (
                        piece.num_input_tokens or counts[0],
                        piece.num_output_tokens or counts[1],
                    )
                    if request.is_streamed and held and not stops.is_stopped:
                        whole += held
                        yield Chunk(held, self.count(held), log_probs=log_probs)
                        held, log_probs = "", ()
                    piece = await anext(pieces, None)
            held += stops.flush()
            if stops.is_stopped:
                reason = "stop"
            if reason is None:
                raise BackendUnavailable(f"{self.url} ended a response before its end")
            stats.num_input_tokens = counts[0] or num_ids
            stats.num_output_tokens = counts[1] or self.count(whole + held)
            stats.ended("done")
            stats.usage = Usage(
                num_input_tokens=stats.num_input_tokens,
                num_output_tokens=stats.num_output_tokens,
                first_token_s=stats.first_response_s,
                total_s=stats.total_s,
            )
            yield Chunk(held, self.count(held), reason, stats.usage, log_probs)

    async def aclose(self) -> None:
        """Requests in flight fail with BackendUnavailable. Idempotent."""
        self.attempts.is_closed = True
        await self.client.aclose()

    async def _attempt(
        self, fields: Mapping[str, object], stats: RequestStats
    ) -> tuple[Piece, AsyncGenerator[Piece, None]]:
        """The response's first piece, and the others."""
        if self.attempts.is_closed:
            raise BackendUnavailable(f"the connection to {self.url} is closed")
        stats.num_attempts += 1
        pieces = self._pieces(fields)
        try:
            first = await anext(pieces, None)
        except BaseException:
            await pieces.aclose()
            raise
        if first is None:
            raise BackendUnavailable(f"{self.url} answered nothing")
        stats.answered()
        return first, pieces

    async def _pieces(self, fields: Mapping[str, object]) -> AsyncGenerator[Piece, None]:
        """What the events say. Closing it closes the connection, and so cancels the request."""
        try:
            async with self.client.stream("POST", self.path, json=fields) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode(errors="replace")
                    raise openai_wire.error_of(
                        response.status_code, text, self.url, self.key_setting
                    )
                async for data in _events(response.aiter_lines()):
                    yield openai_wire.read_event(data)
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise BackendUnavailable(f"no answer from {self.url} ({why})") from error
        except RuntimeError as error:  # httpx: the client was closed meanwhile
            if not self.attempts.is_closed:
                raise
            raise BackendUnavailable(f"the connection to {self.url} is closed") from error


def open_client(
    url: str, key: str, options: ClientOptions, setting: str = "server.url"
) -> httpx.AsyncClient:
    """A client whose paths are below `/v1/`. setting: where the URL stands. Raises ConfigError for
    a URL that is none."""
    root = url.rstrip("/").removesuffix("/v1")
    try:
        parsed = httpx.URL(f"{root}/v1/")
    except httpx.InvalidURL as error:
        raise ConfigError(f"{setting} is {url!r}: {error}") from error
    if not parsed.host:
        raise ConfigError(f"{setting} is {url!r}: it names no host")
    return httpx.AsyncClient(
        base_url=parsed,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(options.response_timeout_s, connect=10.0, pool=None),
        # The queue in front of the engine bounds the requests in flight, not the connections.
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
    )


async def _events(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """The data of Server-Sent Events up to the last. Each of these servers' has one line."""
    async for line in lines:
        if line.startswith(_EVENT):
            data = line[len(_EVENT) :].strip()
            if data == _LAST_EVENT:
                return
            yield data
