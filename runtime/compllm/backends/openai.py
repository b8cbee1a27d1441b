"""The Backend for OpenAI-compatible servers: vLLM, SGLang, trtllm-serve, llama-server and others.

One server holds the base, and each adapter as a model of the adapter's name. Prompts go as token
ids where the server takes them. What a server can do is asked when connecting (openai_probe.py);
openai_wire.py has the messages, docs/BACKENDS.md the table by server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, aclosing
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from compllm.backend import Chunk, GenerateRequest, Prompt
from compllm.backends import openai_probe, openai_wire
from compllm.backends.attempts import Attempts, ClientOptions, OnRequest
from compllm.backends.channel import CORE_MODEL
from compllm.backends.client_stats import RequestStats
from compllm.backends.openai_wire import Capabilities, Piece, ServedAdapter
from compllm.backends.tokenizer import StopStrings, Tokenizer
from compllm.errors import BackendRejected, BackendUnavailable, ConfigError
from compllm.types import FinishReason, Usage

_EVENT, _LAST_EVENT = "data:", "[DONE]"


class OpenAIBackend:
    """Generates through the server at `url`. One per event loop; any number of requests.

    base: the name of the base model there. adapters: those that the server has. tokenizer: the
    base's; it makes the prompt's ids, or breaks special tokens in data, and counts.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        tokenizer: Tokenizer,
        base: str,
        adapters: Iterable[ServedAdapter] = (),
        can: Capabilities | None = None,
        *,
        options: ClientOptions | None = None,
        on_request: OnRequest | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.can = can or Capabilities()
        self.attempts = Attempts(options, on_request)
        self._client = client
        self._base = base
        self._adapters = {each.id: each for each in adapters}

    @classmethod
    async def connect(
        cls,
        url: str,
        tokenizer_dir: str | Path,
        adapters: Mapping[int, str] | None = None,
        *,
        base: str = "",
        adapters_dir: str = "",
        key: str = "",
        options: ClientOptions | None = None,
        timeout_s: float = 10.0,
    ) -> OpenAIBackend:
        """A backend whose server is ready and has the base and every adapter.

        url: `http://host:port`, with or without `/v1`. base: the model's name there; empty: the
        only one. adapters_dir: the folder on the server that holds adapters by name, to load those
        that it lacks. Raises BackendUnavailable, BackendRejected, ConfigError.
        """
        served = [ServedAdapter(*each, adapters_dir) for each in (adapters or {}).items()]
        options = options or ClientOptions()
        tokenizer = await asyncio.to_thread(Tokenizer.from_dir, tokenizer_dir)
        async with AsyncExitStack() as opened:
            client = await opened.enter_async_context(open_client(url, key, options))
            models = await openai_probe.models_at(client, timeout_s)
            name = _base_of(models, base, url)
            await openai_probe.load_adapters(client, served, models)
            can = await openai_probe.capabilities(client, models, name, tokenizer)
            opened.pop_all()
        return cls(client, tokenizer, name, served, can, options=options)

    def max_batch_size(self, model: str) -> int | None:
        """See `backend.TellsLimits`."""
        return self.can.max_batch_size

    async def num_tokens(self, prompt: Prompt) -> int:
        """See `backend.CountsTokens`."""
        return len(await asyncio.to_thread(self.tokenizer.encode, prompt))

    def max_seq_len(self, model: str) -> int | None:
        """See `backend.CountsTokens`; the same for each model of the server."""
        return self.can.max_seq_len

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """See `Backend.generate`."""
        with self.attempts.recorded(request) as stats:
            prompt, num_ids = await asyncio.to_thread(self._prompt, request.prompt)
            fields = openai_wire.body(self._model(request), prompt, request, self.can)
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
                        yield Chunk(held, self._count(held), log_probs=log_probs)
                        held, log_probs = "", ()
                    piece = await anext(pieces, None)
            held += stops.flush()
            if stops.is_stopped:
                reason = "stop"
            if reason is None:
                raise BackendUnavailable(f"{self._url} ended a response before its end")
            stats.num_input_tokens = counts[0] or num_ids
            stats.num_output_tokens = counts[1] or self._count(whole + held)
            stats.ended("done")
            stats.usage = Usage(
                num_input_tokens=stats.num_input_tokens,
                num_output_tokens=stats.num_output_tokens,
                first_token_s=stats.first_response_s,
                total_s=stats.total_s,
            )
            yield Chunk(held, self._count(held), reason, stats.usage, log_probs)

    async def aclose(self) -> None:
        """Requests in flight fail with BackendUnavailable. Idempotent."""
        self.attempts.is_closed = True
        await self._client.aclose()

    @property
    def _url(self) -> str:
        return str(self._client.base_url)

    def _prompt(self, prompt: Prompt) -> tuple[str | list[int], int]:
        """What is sent, and its number of tokens."""
        ids = self.tokenizer.encode(prompt)
        return (ids if self.can.takes_ids else self.tokenizer.text(prompt)), len(ids)

    def _model(self, request: GenerateRequest) -> dict[str, Any]:
        if request.adapter_id is None:
            return {"model": self._base if request.model == CORE_MODEL else request.model}
        adapter = self._adapters.get(request.adapter_id)
        if adapter is None:
            known = ", ".join(map(str, self._adapters)) or "none"
            raise BackendRejected(
                f"no model at {self._url} is known for adapter {request.adapter_id}; known: {known}"
            )
        return adapter.fields(self._base, self.can.family)

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode_text(text)) if text else 0

    async def _attempt(
        self, fields: Mapping[str, object], stats: RequestStats
    ) -> tuple[Piece, AsyncGenerator[Piece, None]]:
        """The response's first piece, and the others."""
        if self.attempts.is_closed:
            raise BackendUnavailable(f"the connection to {self._url} is closed")
        stats.num_attempts += 1
        pieces = self._pieces(fields)
        try:
            first = await anext(pieces, None)
        except BaseException:
            await pieces.aclose()
            raise
        if first is None:
            raise BackendUnavailable(f"{self._url} answered nothing")
        stats.answered()
        return first, pieces

    async def _pieces(self, fields: Mapping[str, object]) -> AsyncGenerator[Piece, None]:
        """What the events say. Closing it closes the connection, and so cancels the request."""
        try:
            async with self._client.stream("POST", "completions", json=fields) as response:
                if response.status_code != 200:
                    text = (await response.aread()).decode(errors="replace")
                    raise openai_wire.error_of(response.status_code, text, self._url)
                async for data in _events(response.aiter_lines()):
                    yield openai_wire.read_event(data)
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise BackendUnavailable(f"no answer from {self._url} ({why})") from error
        except RuntimeError as error:  # httpx: the client was closed meanwhile
            if not self.attempts.is_closed:
                raise
            raise BackendUnavailable(f"the connection to {self._url} is closed") from error


def open_client(url: str, key: str, options: ClientOptions) -> httpx.AsyncClient:
    """A client whose paths are below `/v1/`. Raises ConfigError for a URL that is none."""
    root = url.rstrip("/").removesuffix("/v1")
    try:
        parsed = httpx.URL(f"{root}/v1/")
    except httpx.InvalidURL as error:
        raise ConfigError(f"server.url is {url!r}: {error}") from error
    if not parsed.host:
        raise ConfigError(f"server.url is {url!r}: it names no host")
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


def _base_of(models: openai_probe.Models, wanted: str, url: str) -> str:
    if wanted and wanted not in models.names:
        raise ConfigError(
            f"{url} has no model named {wanted!r}: set server.model to one of "
            f"{', '.join(models.names)}"
        )
    if wanted:
        return wanted
    if len(models.bases) != 1:
        raise ConfigError(
            f"{url} has {len(models.bases)} models: set server.model to the base's name, one of "
            f"{', '.join(models.bases) or 'none'}"
        )
    return models.bases[0]
