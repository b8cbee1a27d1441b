"""The Backend for OpenAI-compatible servers: vLLM, SGLang, trtllm-serve, llama-server and others.

One server holds the base, and each adapter as a model of the adapter's name. Prompts go as token
ids where the server takes them. What a server can do is asked when connecting (openai_probe.py);
openai_wire.py has the messages, docs/BACKENDS.md the table by server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx

from compllm.backend import GenerateRequest, Prompt
from compllm.backends import openai_probe, openai_wire
from compllm.backends.attempts import ClientOptions, OnRequest
from compllm.backends.channel import CORE_MODEL
from compllm.backends.openai_http import HttpEngine, open_client
from compllm.backends.openai_wire import Capabilities, ServedAdapter
from compllm.backends.tokenizer import Tokenizer
from compllm.errors import BackendRejected, ConfigError


class OpenAIBackend(HttpEngine):
    """Generates through the server at `url`. One per event loop; any number of requests.

    base: the name of the base model there. adapters: those that the server has. tokenizer: the
    base's; it makes the prompt's ids, or breaks special tokens in data, and counts.
    """

    path = "completions"
    key_setting = "server.api_key_env"

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
        super().__init__(client, options, on_request)
        self.tokenizer = tokenizer
        self.can = can or Capabilities()
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

    async def fields(self, request: GenerateRequest) -> tuple[dict[str, Any], int]:
        """See `HttpEngine.fields`."""
        prompt, num_ids = await asyncio.to_thread(self._prompt, request.prompt)
        return openai_wire.body(self._model(request), prompt, request, self.can), num_ids

    def count(self, text: str) -> int:
        """By the base's tokenizer."""
        return len(self.tokenizer.encode_text(text)) if text else 0

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
                f"no model at {self.url} is known for adapter {request.adapter_id}; known: {known}"
            )
        return adapter.fields(self._base, self.can.family)


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
