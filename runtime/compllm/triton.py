"""The Backend over gRPC: text in and out, TensorRT-LLM's core model behind Triton underneath.

With `stream.py` and `wire.py` below it the only module that knows tritonclient.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from compllm import wire
from compllm.backend import Chunk, GenerateRequest, Prompt
from compllm.errors import BackendUnavailable, ConfigError
from compllm.stream import AdapterMissing, Stream, error_from
from compllm.tokenizer import Detokenizer, StopStrings, Tokenizer
from compllm.types import Usage

AdapterWeights = Callable[[int], wire.AdapterTensors | None]

_CORE_MODEL = "tensorrt_llm"
_LONG_TEXT = 4000  # characters; tokenising more takes over 1 ms and leaves the event loop
_POLL_S = 0.05  # between questions to a server that is up but not yet ready

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # an adapter's weights are megabytes
    ("grpc.max_receive_message_length", -1),
    # A server that comes back is found at once, not after a pause that grew while it was away.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class TritonBackend:
    """Generates through Triton at `url` (host:port). One per event loop; any number of requests.

    adapter_weights: gives an adapter's tensors by task id, for an engine that has lost them. It is
    called once a request at most, and never again for the same refusal.
    """

    def __init__(
        self, url: str, tokenizer: Tokenizer, adapter_weights: AdapterWeights | None = None
    ) -> None:
        self.url = url
        self.tokenizer = tokenizer
        self._adapter_weights = adapter_weights
        self._channel: grpc.aio.Channel | None = None
        self._stream: Stream | None = None
        self._serial = itertools.count(1)
        self._is_closed = False

    @classmethod
    async def connect(
        cls, url: str, tokenizer_dir: str | Path | None = None, *, timeout_s: float = 10.0
    ) -> TritonBackend:
        """A backend whose server is ready. The tokenizer is read from `tokenizer_dir`, else from
        the directory that the model's configuration names, where that is on this machine.

        Raises BackendUnavailable, and ConfigError where there is no tokenizer.
        """
        async with _open_channel(url) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            await _wait_ready(stub, url, timeout_s)
            try:
                question = service_pb2.ModelConfigRequest(name=_CORE_MODEL)
                answer = await stub.ModelConfig(question, timeout=timeout_s)
            except grpc.RpcError as foreign:
                raise error_from(foreign) from foreign
        parameters = answer.config.parameters
        named = tokenizer_dir or parameters["tokenizer_dir"].string_value
        if not named:
            raise ConfigError(
                f"the model at {url} names no tokenizer: give the directory of its tokenizer.json"
            )
        engine_dir = Path(parameters["gpt_model_path"].string_value)
        tokenizer = await asyncio.to_thread(Tokenizer.from_dir, named)
        return cls(url, tokenizer, await asyncio.to_thread(_weights_of, engine_dir))

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """See `Backend.generate`. An adapter the engine does not know is sent to it once."""
        input_ids = await self._encode(request.prompt)
        weights = None
        while True:
            try:
                async with aclosing(self._attempt(request, input_ids, weights)) as chunks:
                    async for chunk in chunks:
                        yield chunk
                return
            except AdapterMissing:
                if weights is not None:
                    raise
                weights = await self._weights(request)
                if weights is None:
                    raise

    async def server_live(self) -> bool:
        """Whether anybody answers at all."""
        try:
            answer = await self._stub().ServerLive(service_pb2.ServerLiveRequest(), timeout=2.0)
        except grpc.RpcError:
            return False
        return bool(answer.live)

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when the core model can be asked. Raises BackendUnavailable when time is up."""
        await _wait_ready(self._stub(), self.url, timeout_s)

    async def aclose(self) -> None:
        """Requests in flight fail with BackendUnavailable. Idempotent."""
        self._is_closed = True
        if self._stream is not None:
            await self._stream.aclose()
        if self._channel is not None:
            await self._channel.close()

    async def _encode(self, prompt: Prompt) -> list[int]:
        if sum(len(segment.text) for segment in prompt) > _LONG_TEXT:
            return await asyncio.to_thread(self.tokenizer.encode, prompt)
        return self.tokenizer.encode(prompt)

    async def _weights(self, request: GenerateRequest) -> wire.AdapterTensors | None:
        if self._adapter_weights is None or request.adapter_id is None:
            return None
        return await asyncio.to_thread(self._adapter_weights, request.adapter_id)

    async def _attempt(
        self, request: GenerateRequest, input_ids: list[int], weights: wire.AdapterTensors | None
    ) -> AsyncGenerator[Chunk, None]:
        special = self.tokenizer.special
        # Unique in the process even where a caller uses an id again while its stop is under way.
        wire_id = f"{request.id}#{next(self._serial)}"
        message = wire.inference_message(
            request,
            wire_id,
            input_ids,
            special,
            # A stop string can be seen only while tokens arrive, and saves the rest of them.
            is_streamed=request.is_streamed or bool(request.sampling.stop),
            weights=weights,
        )
        text = _Text(self.tokenizer, request.sampling.stop)
        new_text, num_new, num_tokens = "", 0, 0
        with self._live_stream().exchange(request.model, wire_id) as exchange:
            exchange.send(message)
            while True:
                tensors = await exchange.receive()
                ids = wire.read_ids(tensors)
                new_text += text.push(ids)
                num_new += len(ids)
                num_tokens += len(ids)
                if text.is_stopped or exchange.is_over:
                    break
                if request.is_streamed and new_text:
                    yield Chunk(new_text, num_new)
                    new_text, num_new = "", 0
            if not exchange.is_over:
                tensors = await exchange.stop()
        is_ended = bool(ids) and ids[-1] in (special.end_id, *special.more_end_ids)
        is_short = num_tokens < request.sampling.max_tokens
        yield Chunk(
            new_text + text.flush(),
            num_new,
            "stop" if text.is_stopped or is_ended or is_short else "length",
            _usage(tensors, len(input_ids), num_tokens),
        )

    def _live_stream(self) -> Stream:
        if self._stream is None or self._stream.is_broken:
            self._stream = Stream(self._stub())
        return self._stream

    def _stub(self) -> Any:
        if self._is_closed:
            raise BackendUnavailable(f"the connection to {self.url} is closed")
        if self._channel is None:
            self._channel = _open_channel(self.url)
        return service_pb2_grpc.GRPCInferenceServiceStub(self._channel)


class _Text:
    """Token ids of one response after another, made text that ends at a stop string."""

    def __init__(self, tokenizer: Tokenizer, stops: tuple[str, ...]) -> None:
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(stops)

    @property
    def is_stopped(self) -> bool:
        return self._stops.is_stopped

    def push(self, ids: list[int]) -> str:
        return self._stops.push(self._detokenizer.push(ids))

    def flush(self) -> str:
        return self._stops.push(self._detokenizer.flush()) + self._stops.flush()


def _usage(tensors: wire.Tensors, num_input_tokens: int, num_output_tokens: int) -> Usage:
    """The engine's report, with our own counts where it gives none."""
    usage = wire.read_usage(tensors)
    return replace(
        usage,
        num_input_tokens=usage.num_input_tokens or num_input_tokens,
        num_output_tokens=usage.num_output_tokens or num_output_tokens,
    )


def _open_channel(url: str) -> grpc.aio.Channel:
    options = list(_CHANNEL_OPTIONS)
    if url.startswith(("127.", "localhost:", "[::1]")):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot mean this machine
    return grpc.aio.insecure_channel(url, options=options)


async def _wait_ready(stub: Any, url: str, timeout_s: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        cause: grpc.RpcError | None = None
        question = service_pb2.ModelReadyRequest(name=_CORE_MODEL)
        try:
            answer = await stub.ModelReady(question, timeout=max(0.05, deadline - loop.time()))
            if answer.ready:
                return
            why = f"{_CORE_MODEL} is not loaded"
        except grpc.aio.AioRpcError as foreign:
            cause, why = foreign, str(foreign.details())
        if loop.time() + _POLL_S > deadline:
            message = f"no ready server at {url} within {timeout_s:g} s: {why}"
            raise BackendUnavailable(message) from cause
        await asyncio.sleep(_POLL_S)


def _weights_of(engine_dir: Path) -> AdapterWeights | None:
    """Adapters of an embedded engine on this machine, by task id; None for any other engine."""
    if not (engine_dir / "manifest.json").is_file():
        return None
    from compllm.embedded.lora_tensors import read_engine_adapter

    return lambda task_id: read_engine_adapter(engine_dir, task_id)
