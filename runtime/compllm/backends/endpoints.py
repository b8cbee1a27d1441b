"""Experts at other servers, over OpenAI's chat interface, which applies the model's template.

`WithEndpoints` stands before the path's own backend and sends each request where its `model` says.
Nothing is asked of a server at the start. Where one is away the base answers for its expert, as it
does for an adapter that fails.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Any

from compllm.backend import (
    Backend,
    Chunk,
    CountsTokens,
    GenerateRequest,
    Prompt,
    Segment,
    TellsLimits,
    collect,
    open_chunks,
)
from compllm.backends import openai_wire
from compllm.backends.attempts import ClientOptions
from compllm.backends.openai_http import HttpEngine, open_client
from compllm.backends.openai_probe import models_at
from compllm.backends.openai_wire import Capabilities
from compllm.catalogue import Endpoint
from compllm.errors import BackendError, BackendRejected, ConfigError
from compllm.types import SamplingParams

_AT_ONCE = 16  # requests in flight at one endpoint, which does not say what it batches


class ChatEngine(HttpEngine):
    """The server of one endpoint. Raises ConfigError for a URL that is none."""

    path = "chat/completions"
    key_setting = "the expert's key_env"

    def __init__(self, endpoint: Endpoint, key: str, options: ClientOptions | None = None) -> None:
        options = options or ClientOptions()
        super().__init__(open_client(endpoint.url, key, options, "an expert's url"), options)
        self.endpoint = endpoint

    async def fields(self, request: GenerateRequest) -> tuple[dict[str, Any], int]:
        """See `HttpEngine.fields`. The number of tokens is the server's to say."""
        turns = [{"role": each.role, "content": each.text} for each in request.prompt if each.role]
        if not turns:
            raise BackendRejected("the prompt has no turns, and a chat server takes nothing else")
        sampling = openai_wire.sampling_fields(request, Capabilities())
        return {"model": self.endpoint.model, "messages": turns, **sampling}, 0

    def count(self, text: str) -> int:
        """Pieces: the tokenizer is the server's."""
        return 1 if text else 0


class WithEndpoints:
    """The path's own backend, and those of the endpoints by their key."""

    def __init__(self, own: Backend, endpoints: Sequence[ChatEngine]) -> None:
        self._own = own
        self._endpoints = {each.endpoint.key: each for each in endpoints}

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """See `Backend.generate`."""
        backend: Backend = self._endpoints.get(request.model) or self._own
        async with open_chunks(backend, request) as chunks:
            async for chunk in chunks:
                yield chunk

    def max_batch_size(self, model: str) -> int | None:
        """See `backend.TellsLimits`."""
        if model in self._endpoints:
            return _AT_ONCE
        return self._own.max_batch_size(model) if isinstance(self._own, TellsLimits) else None

    async def num_tokens(self, prompt: Prompt) -> int:
        """See `backend.CountsTokens`."""
        return await self._own.num_tokens(prompt) if isinstance(self._own, CountsTokens) else 0

    def max_seq_len(self, model: str) -> int | None:
        """See `backend.CountsTokens`; None for an endpoint, which refuses what is too long."""
        if model in self._endpoints or not isinstance(self._own, CountsTokens):
            return None
        return self._own.max_seq_len(model)

    async def aclose(self) -> None:
        """Close all of them. Idempotent."""
        async with AsyncExitStack() as closing:
            for each in (self._own, *self._endpoints.values()):
                closing.push_async_callback(each.aclose)


async def check_endpoint(endpoint: Endpoint, key: str, timeout_s: float = 10.0) -> str:
    """Ask the server for its models, then for a few words as the path does; returns the words.

    Raises ConfigError with the remedy: no server, a wrong key, no such model, no chat."""
    engine = ChatEngine(endpoint, key, ClientOptions(response_timeout_s=120.0, max_attempts=1))
    async with aclosing(engine):
        try:
            models = await models_at(engine.client, timeout_s, engine.key_setting, "--url")
            if endpoint.model not in models.names:
                raise ConfigError(
                    f"{endpoint.url} has no model named {endpoint.model!r}: give --model one of "
                    f"{', '.join(models.names) or 'none'}"
                )
            prompt = (Segment("Say hello.", role="user"),)
            hello = GenerateRequest("hello", prompt, SamplingParams(max_tokens=8))
            return (await collect(engine, hello))[0]
        except BackendError as error:
            raise ConfigError(
                f"the endpoint cannot be used: {error}: start that server, or correct --url, "
                "--model or --key-env"
            ) from error
