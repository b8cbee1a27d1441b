"""The Backend over gRPC: text in and out, TensorRT-LLM's core model behind Triton underneath.

`connection.py`, `stream.py` and `wire.py` are below it, `lora_client.py` beside it. What goes wrong
before the first response (a lost connection, an adapter that is not in the cache) is tried again;
after it, a request ends with its error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from compllm.backend import Chunk, GenerateRequest, Prompt, Segment, collect
from compllm.backends import wire
from compllm.backends.adapter_files import (
    converted_beside,
    is_embedded_engine,
    named_weights,
    weights_in,
)
from compllm.backends.attempts import ClientOptions, OnRequest
from compllm.backends.channel import CORE_MODEL, model_config
from compllm.backends.client_stats import ClientStats, RequestStats
from compllm.backends.connection import Connection
from compllm.backends.lora_client import AdapterUse, AdapterWeights, LoraClient
from compllm.backends.model_limits import batch_size_of, seq_len_of
from compllm.backends.stream import AdapterMissing, CacheFull, Exchange
from compllm.backends.tokenizer import Detokenizer, StopStrings, Tokenizer
from compllm.errors import CompllmError, ConfigError
from compllm.types import FinishReason, SamplingParams, Usage

_FIRST_MARK = 0x100000  # of the last private plane: texts do not have them
_LONG_TEXT = 4000  # characters; tokenising more takes over 1 ms and leaves the event loop


class TritonBackend:
    """Generates through Triton at `url` (host:port). One per event loop; any number of requests.

    adapter_weights: gives an adapter's tensors by task id. is_prefetched: the engine has loaded its
    adapters itself. on_request: called with the statistics of each request that has ended.
    batch_sizes, seq_lens: what the engine of each model batches, and tokens of one request.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Tokenizer,
        adapter_weights: AdapterWeights | None = None,
        *,
        is_prefetched: bool = False,
        batch_sizes: Mapping[str, int | None] | None = None,
        seq_lens: Mapping[str, int | None] | None = None,
        options: ClientOptions | None = None,
        on_request: OnRequest | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.connection = Connection(url, options, on_request)
        self._batch_sizes = dict(batch_sizes or {})
        self._seq_lens = dict(seq_lens or {})
        self._make_lora = partial(
            LoraClient,
            adapter_weights,
            is_prefetched=is_prefetched,
            max_wait_s=self.connection.options.adapter_wait_s,
        )
        self._lora: dict[str, LoraClient] = {}

    @property
    def stats(self) -> ClientStats:
        """Sums over all requests that have ended."""
        return self.connection.stats

    def lora(self, model: str = CORE_MODEL) -> LoraClient:
        """What is known of this model's LoRA cache: every engine has its own."""
        if model not in self._lora:
            self._lora[model] = self._make_lora()
        return self._lora[model]

    @classmethod
    async def connect(
        cls,
        url: str,
        tokenizer_dir: str | Path | None = None,
        *,
        adapters_dir: str | Path | None = None,
        options: ClientOptions | None = None,
        timeout_s: float = 10.0,
    ) -> TritonBackend:
        """A backend whose server is ready. The tokenizer and the adapters' weights are read from
        these directories, else from those that the model's configuration names, where they are on
        this machine.

        Raises BackendUnavailable, and ConfigError where there is no tokenizer.
        """
        config = await model_config(url, timeout_s)
        return await cls.for_model(
            url,
            config,
            tokenizer_dir,
            adapters_dir=adapters_dir,
            batch_sizes={CORE_MODEL: batch_size_of(config)},
            seq_lens={CORE_MODEL: seq_len_of(config)},
            options=options,
        )

    @classmethod
    async def for_model(
        cls,
        url: str,
        config: Any,
        tokenizer_dir: str | Path | None = None,
        *,
        adapters_dir: str | Path | None = None,
        batch_sizes: Mapping[str, int | None] | None = None,
        seq_lens: Mapping[str, int | None] | None = None,
        options: ClientOptions | None = None,
    ) -> TritonBackend:
        """`connect` for a server whose model's configuration (the protobuf) is known."""
        parameters = {key: each.string_value for key, each in config.parameters.items()}
        named = tokenizer_dir or parameters.get("tokenizer_dir")
        if not named:
            raise ConfigError(
                f"the model at {url} names no tokenizer: give the directory of its tokenizer.json"
            )
        tokenizer = await asyncio.to_thread(Tokenizer.from_dir, named)
        weights, is_prefetched = await asyncio.to_thread(
            _adapters, parameters, Path(adapters_dir) if adapters_dir else None
        )
        # What the server's own warm-up has sent is there.
        is_prefetched |= any("lora_weights" in each.inputs for each in config.model_warmup)
        return cls(
            url,
            tokenizer,
            weights,
            is_prefetched=is_prefetched,
            batch_sizes=batch_sizes,
            seq_lens=seq_lens,
            options=options,
        )

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """See `Backend.generate`."""
        timeout_s = self.connection.options.response_timeout_s
        with self.connection.recorded(request) as stats:
            input_ids = await self._encode(request.prompt)
            stats.num_input_tokens = len(input_ids)
            async with self.lora(request.model).use(request.adapter_id, stats.lora) as use:
                exchange, tensors, ending = await self.connection.begun(
                    partial(self._attempt, request, input_ids, use, stats), stats
                )
                with ending:
                    use.accepted()
                    text = _Text(self.tokenizer, request.sampling.stop)
                    new_text, num_new = "", 0
                    log_probs: tuple[float, ...] = ()
                    while True:
                        ids = wire.read_ids(tensors)
                        num_before = stats.num_output_tokens
                        log_probs += wire.read_log_probs(tensors, num_before, len(ids))
                        new_text += text.push(ids)
                        num_new += len(ids)
                        stats.num_output_tokens += len(ids)
                        if text.is_stopped or exchange.is_over:
                            break
                        if request.is_streamed and new_text:
                            yield Chunk(new_text, num_new, log_probs=log_probs)
                            new_text, num_new, log_probs = "", 0, ()
                        tensors = await exchange.receive(timeout_s)
                    if not exchange.is_over:
                        tensors = await exchange.stop()
            stats.usage = _usage(tensors, len(input_ids), stats.num_output_tokens)
            is_stopped = text.is_stopped or self._is_ended(request, ids, stats)
            reason: FinishReason = "stop" if is_stopped else "length"
            stats.ended("done")
            yield Chunk(new_text + text.flush(), num_new, reason, stats.usage, log_probs)

    async def warm_up(
        self, adapter_ids: Iterable[int], model: str = CORE_MODEL
    ) -> dict[int, str | None]:
        """Have each adapter answer one token, so that no user's request has to bring it. Gives the
        error of each, None where it went well; adapters beyond the cache's size evict earlier ones.
        """

        async def one(adapter_id: int) -> str | None:
            request = GenerateRequest(
                f"warm-up-{adapter_id}",
                (Segment("Hello"),),
                SamplingParams(max_tokens=1),
                model,
                adapter_id,
            )
            try:
                await collect(self, request)
            except CompllmError as error:
                return str(error)
            return None

        ids = tuple(dict.fromkeys(adapter_ids))
        return dict(zip(ids, await asyncio.gather(*map(one, ids)), strict=True))

    def max_batch_size(self, model: str = CORE_MODEL) -> int | None:
        """Requests that the engine computes in one step; None where that is not known."""
        return self._batch_sizes.get(model)

    def max_seq_len(self, model: str = CORE_MODEL) -> int | None:
        """Tokens of a prompt and its response together; None where that is not known."""
        return self._seq_lens.get(model)

    async def num_tokens(self, prompt: Prompt) -> int:
        """Of the prompt, as it is sent."""
        return len(await self._encode(prompt))

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when the core model can be asked. Raises BackendUnavailable when time is up."""
        await self.connection.wait_ready(timeout_s)

    async def aclose(self) -> None:
        """Requests in flight fail with BackendUnavailable. Idempotent."""
        await self.connection.aclose()

    async def _encode(self, prompt: Prompt) -> list[int]:
        if sum(len(segment.text) for segment in prompt) > _LONG_TEXT:
            return await asyncio.to_thread(self.tokenizer.encode, prompt)
        return self.tokenizer.encode(prompt)

    async def _attempt(
        self, request: GenerateRequest, input_ids: list[int], use: AdapterUse, stats: RequestStats
    ) -> tuple[Exchange, wire.Tensors, ExitStack]:
        """The exchange with its first response, and what ends it."""
        while True:
            wire_id = self.connection.wire_id(request)
            make_stop = partial(wire.stop_message, request.model, wire_id)
            try:
                with ExitStack() as ending:
                    exchange = self.connection.exchange(wire_id, make_stop)
                    ending.enter_context(exchange)
                    async with use.weights() as weights:
                        exchange.send(self._message(request, wire_id, input_ids, weights))
                        stats.num_attempts += 1
                    tensors = await exchange.receive(self.connection.options.response_timeout_s)
                    stats.answered()
                    return exchange, tensors, ending.pop_all()
            except AdapterMissing as error:
                use.missing(error)
            except CacheFull as error:
                await use.full(error)

    def _message(
        self,
        request: GenerateRequest,
        wire_id: str,
        input_ids: list[int],
        weights: wire.AdapterTensors | None,
    ) -> Any:
        return wire.inference_message(
            request,
            wire_id,
            input_ids,
            self.tokenizer.special,
            # A stop string can be seen only while tokens arrive, and saves the rest of them.
            is_streamed=request.is_streamed or bool(request.sampling.stop),
            weights=weights,
        )

    def _is_ended(self, request: GenerateRequest, ids: list[int], stats: RequestStats) -> bool:
        """Whether the text ended by itself."""
        special = self.tokenizer.special
        is_end = bool(ids) and ids[-1] in (special.end_id, *special.more_end_ids)
        return is_end or stats.num_output_tokens < request.sampling.max_tokens


class _Text:
    """Token ids of one response after another, made text that ends at a stop string.

    Special tokens are no part of the text, but a stop string may spell one. Each that some stop
    string spells stands in the stream as one character of no text, which is not shown.
    """

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        special = tokenizer.special_ids(stops) if stops else {}
        self._marks = {token: chr(_FIRST_MARK + at) for at, token in enumerate(special)}
        self._hidden = dict.fromkeys(map(ord, self._marks.values()))
        marked = list(stops)
        for token in sorted(special, key=lambda each: -len(special[each])):
            marked = [stop.replace(special[token], self._marks[token]) for stop in marked]
        self._stops = StopStrings((*stops, *marked))

    @property
    def is_stopped(self) -> bool:
        return self._stops.is_stopped

    def push(self, ids: list[int]) -> str:
        if not self._marks:
            return self._stops.push(self._detokenizer.push(ids))
        text = ""
        for each in ids:
            mark = self._marks.get(each)
            text += self._detokenizer.flush() + mark if mark else self._detokenizer.push([each])
        return self._stops.push(text).translate(self._hidden)

    def flush(self) -> str:
        text = self._stops.push(self._detokenizer.flush()) + self._stops.flush()
        return text.translate(self._hidden)


def _usage(tensors: wire.Tensors, num_input_tokens: int, num_output_tokens: int) -> Usage:
    """The engine's report. Output tokens are our own count: an engine that streams reports those of
    each response alone."""
    usage = wire.read_usage(tensors)
    return replace(
        usage,
        num_input_tokens=usage.num_input_tokens or num_input_tokens,
        num_output_tokens=num_output_tokens,
    )


def _adapters(
    parameters: dict[str, str], directory: Path | None
) -> tuple[AdapterWeights | None, bool]:
    """Where the weights are, and whether the engine says that it has loaded them itself."""
    engine = Path(parameters.get("gpt_model_path", ""))
    prefetched = parameters.get("lora_prefetch_dir", "")
    try:
        options = json.loads(parameters.get("executor_options") or "{}")
    except ValueError:
        options = {}
    if is_embedded_engine(engine) and not options.get("is_lora_cache"):
        prefetched = prefetched or str(engine)
    if directory is not None:
        return named_weights(directory), bool(prefetched)
    places = (Path(prefetched) if prefetched else None, engine, converted_beside(engine))
    for place in places:
        if place is not None and (weights := weights_in(place)) is not None:
            return weights, bool(prefetched)
    return None, bool(prefetched)
