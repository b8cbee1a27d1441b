"""The Backend for Triton's `llmapi` repository: TensorRT-LLM 1.3 and later, which have no engines.

Text in and text out, adapters by their path on the server. What that repository cannot do (guides,
repetition penalty) is refused here with what to change; docs/BACKENDS.md compares the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from compllm.backend import Chunk, GenerateRequest
from compllm.backends import llmapi_wire, wire
from compllm.backends.attempts import ClientOptions, OnRequest
from compllm.backends.channel import model_config
from compllm.backends.client_stats import ClientStats, RequestStats
from compllm.backends.connection import Connection
from compllm.backends.llmapi_wire import LORA_INPUTS, ServerAdapter
from compllm.backends.stream import Exchange
from compllm.backends.tokenizer import StopStrings, Tokenizer
from compllm.catalogue import Adapter
from compllm.errors import BackendError, BackendRejected, ConfigError
from compllm.types import Usage

_UNFINISHED = "\ufffd"  # at the end of a text: a character that is not complete yet


class LlmApiBackend:
    """Generates through the llmapi model at `url` (host:port). One per event loop.

    tokenizer: the model's; breaks special tokens in data, and counts. adapters: by task id.
    is_decoupled, has_lora: what the model's configuration says; without the first nothing streams.
    wants_perf: ask for KV counts and the engine's own times (its 1.2.1 sends them as text).
    """

    def __init__(
        self,
        url: str,
        tokenizer: Tokenizer,
        adapters: Mapping[int, ServerAdapter] | None = None,
        *,
        is_decoupled: bool = True,
        has_lora: bool = True,
        wants_perf: bool = False,
        options: ClientOptions | None = None,
        on_request: OnRequest | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.connection = Connection(url, options, on_request)
        self._adapters = dict(adapters or {})
        self._is_decoupled = is_decoupled
        self._has_lora = has_lora
        self._wants_perf = wants_perf

    @property
    def stats(self) -> ClientStats:
        """Sums over all requests that have ended."""
        return self.connection.stats

    @classmethod
    async def connect(
        cls,
        url: str,
        tokenizer_dir: str | Path,
        adapters: Mapping[int, ServerAdapter] | None = None,
        *,
        options: ClientOptions | None = None,
        timeout_s: float = 10.0,
    ) -> LlmApiBackend:
        """A backend whose server is ready. Raises BackendUnavailable, and ConfigError where the
        model there is another one or there is no tokenizer."""
        config = await model_config(url, timeout_s)
        return await cls.for_model(url, config, tokenizer_dir, adapters, options=options)

    @classmethod
    async def for_model(
        cls,
        url: str,
        config: Any,
        tokenizer_dir: str | Path,
        adapters: Mapping[int, ServerAdapter] | None = None,
        *,
        options: ClientOptions | None = None,
    ) -> LlmApiBackend:
        """`connect` for a server whose model's configuration (the protobuf) is known."""
        if not is_llmapi(config):
            raise ConfigError(
                f"the model {config.name} at {url} has no input text_input: it is not that of the "
                "llmapi repository"
            )
        names = {each.name for each in config.input}
        return cls(
            url,
            await asyncio.to_thread(Tokenizer.from_dir, tokenizer_dir),
            adapters,
            is_decoupled=config.model_transaction_policy.decoupled,
            has_lora=names.issuperset(LORA_INPUTS),
            options=options,
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """See `Backend.generate`. The tokenizer counts the tokens: the server reports no count."""
        timeout_s = self.connection.options.response_timeout_s
        with self.connection.recorded(request) as stats:
            adapter = self._check(request)
            text = await asyncio.to_thread(self.tokenizer.text, request.prompt)
            exchange, tensors, ending = await self.connection.begun(
                partial(self._attempt, request, text, adapter, stats), stats
            )
            with ending:
                news, stops = News(), StopStrings(request.sampling.stop)
                whole = held = ""
                while True:
                    held += stops.push(
                        news.push(llmapi_wire.read_text(tensors), is_end=exchange.is_over)
                    )
                    if stops.is_stopped or exchange.is_over:
                        break
                    if request.is_streamed and held:
                        whole += held
                        yield Chunk(held, self._count(held))
                        held = ""
                    # An empty final response is possible: what came before it still holds.
                    tensors = await exchange.receive(timeout_s) or tensors
            held += stops.flush()
            stats.num_output_tokens = self._count(whole + held)
            stats.num_input_tokens = self._count(text)
            stats.ended("done")
            stats.usage = _usage(tensors, stats)
            reason = "stop" if stops.is_stopped else llmapi_wire.read_reason(tensors)
            yield Chunk(held, self._count(held), reason, stats.usage)

    async def aclose(self) -> None:
        """Requests in flight fail with BackendUnavailable. Idempotent."""
        await self.connection.aclose()

    async def _attempt(
        self,
        request: GenerateRequest,
        text: str,
        adapter: ServerAdapter | None,
        stats: RequestStats,
    ) -> tuple[Exchange, wire.Tensors, ExitStack]:
        """The exchange with its first response, and what ends it."""
        wire_id = self.connection.wire_id(request)
        with ExitStack() as ending:
            exchange = self.connection.exchange(
                wire_id, partial(llmapi_wire.stop_message, request.model, wire_id)
            )
            ending.enter_context(exchange)
            # A stop string can be seen only while tokens arrive, and saves the rest of them.
            is_streamed = request.is_streamed or bool(request.sampling.stop)
            message = llmapi_wire.inference_message(
                request,
                wire_id,
                text,
                is_streamed=is_streamed and self._is_decoupled,
                adapter=adapter,
                wants_perf=self._wants_perf and request.wants_perf,
            )
            exchange.send(message)
            stats.num_attempts += 1
            tensors = await exchange.receive(self.connection.options.response_timeout_s)
            stats.answered()
            return exchange, tensors, ending.pop_all()

    def _check(self, request: GenerateRequest) -> ServerAdapter | None:
        """The adapter to name. Raises BackendRejected for what this server cannot do."""
        if request.guide is not None:
            raise BackendRejected(
                "the llmapi repository takes no guide: set generator.is_guided = false"
            )
        if request.sampling.repetition_penalty != 1:
            raise BackendRejected(
                f"the llmapi repository takes no repetition penalty: it must be 1, not "
                f"{request.sampling.repetition_penalty:g}"
            )
        if request.sampling.min_tokens:
            raise BackendRejected(
                f"the llmapi repository takes no least number of tokens: it must be 0, not "
                f"{request.sampling.min_tokens}"
            )
        if request.adapter_id is None:
            return None
        if not self._has_lora:
            raise BackendRejected(
                f"the model at {self.connection.url} has no inputs {', '.join(LORA_INPUTS)}: they "
                "came with TensorRT-LLM 1.3; use a newer image, or experts without adapters"
            )
        adapter = self._adapters.get(request.adapter_id)
        if adapter is None:
            known = ", ".join(map(str, self._adapters)) or "none"
            raise BackendRejected(
                f"no path on the server is known for adapter {request.adapter_id}; known: {known}. "
                "Set server.adapters_dir to the folder there that holds them by name"
            )
        return adapter

    def _count(self, text: str) -> int:
        return len(self.tokenizer.encode_text(text))


def is_llmapi(config: Any) -> bool:
    """Whether a `tensorrt_llm` model's configuration is that of the llmapi repository."""
    names = {each.name for each in config.input}
    return "text_input" in names and "input_ids" not in names


def server_adapters(adapters: Iterable[Adapter], root: str) -> dict[int, ServerAdapter]:
    """The catalogue's adapters, in folders of their names below `root` on the server."""
    return {
        each.id: ServerAdapter(each.name, str(PurePosixPath(root) / each.name)) for each in adapters
    }


class News:
    """Accumulated texts in, what each adds out."""

    def __init__(self) -> None:
        self._seen = ""

    def push(self, whole: str, *, is_end: bool) -> str:
        if not whole and is_end:
            return ""  # an empty final response
        certain = whole if is_end else whole.rstrip(_UNFINISHED)
        if not certain.startswith(self._seen):
            raise BackendError(
                "the server took back text that it had sent: is the model llmapi's, with "
                "accumulated text_output?"
            )
        new = certain[len(self._seen) :]
        self._seen = certain
        return new


def _usage(tensors: wire.Tensors, stats: RequestStats) -> Usage:
    """The engine's report where it gave one, else the times that we saw ourselves."""
    number = partial(llmapi_wire.read_number, tensors)
    arrival = number("arrival_time_ns")

    def since_arrival(name: str, seen_s: float) -> float:
        at = number(name)
        return max(0.0, (at - arrival) / 1e9) if at and arrival else seen_s

    return Usage(
        num_input_tokens=stats.num_input_tokens,
        num_output_tokens=stats.num_output_tokens,
        kv_reused_blocks=number("kv_cache_reused_block"),
        kv_alloc_blocks=number("kv_cache_alloc_total_blocks"),
        scheduled_s=since_arrival("first_scheduled_time_ns", 0.0),
        first_token_s=since_arrival("first_token_time_ns", stats.first_response_s),
        total_s=since_arrival("last_token_time_ns", stats.total_s),
    )
