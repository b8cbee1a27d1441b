"""The Backend over gRPC: text in and out, TensorRT-LLM's core model behind Triton underneath.

With `wire.py` the only module that knows tritonclient. One bidirectional stream carries all
requests of a process; responses find their request by its id. tritonclient's generated stubs are
used rather than its own stream, whose errors do not say which request they are about.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from compllm import wire
from compllm.backend import Chunk, GenerateRequest, Prompt
from compllm.errors import BackendError, BackendRejected, BackendUnavailable, ConfigError
from compllm.tokenizer import Detokenizer, StopStrings, Tokenizer
from compllm.types import Usage

AdapterWeights = Callable[[int], wire.AdapterTensors | None]

_CORE_MODEL = "tensorrt_llm"
_LONG_TEXT = 4000  # characters; tokenising more takes over 1 ms and leaves the event loop
_LAST_WORDS_S = 0.25  # for a stopped request's numbers to arrive
_POLL_S = 0.05  # between questions to a server that is up but not yet ready

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # an adapter's weights are megabytes
    ("grpc.max_receive_message_length", -1),
    # A server that comes back is found at once, not after a pause that grew while it was away.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]

_CODES: dict[grpc.StatusCode, type[BackendError]] = {
    grpc.StatusCode.UNAVAILABLE: BackendUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: BackendUnavailable,
    grpc.StatusCode.CANCELLED: BackendUnavailable,  # by the server: we do not ask then
    grpc.StatusCode.RESOURCE_EXHAUSTED: BackendUnavailable,
    grpc.StatusCode.INVALID_ARGUMENT: BackendRejected,
    grpc.StatusCode.NOT_FOUND: BackendRejected,
    grpc.StatusCode.UNIMPLEMENTED: BackendRejected,
    grpc.StatusCode.FAILED_PRECONDITION: BackendRejected,
    grpc.StatusCode.OUT_OF_RANGE: BackendRejected,
    grpc.StatusCode.PERMISSION_DENIED: BackendRejected,
    grpc.StatusCode.UNAUTHENTICATED: BackendRejected,
}

# On the stream an error is only text. First match; what matches nothing refuses the request.
_TEXTS: tuple[tuple[re.Pattern[str], type[BackendError]], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        (r"queue is full|maximum queue size|try again later", BackendUnavailable),
        (r"shut(ting)? ?down|is unloaded|unavailable model|not ready", BackendUnavailable),
        # Triton's own words for a model on its way out.
        (r"no available versions|not at ready state|server is stopping", BackendUnavailable),
        (r"stub process|is not healthy", BackendUnavailable),
        (r"the engine failed|the engine cannot take", BackendError),
        (r"Encountered an error in forward|out of memory|CUDA", BackendError),
    )
)
_ADAPTER_MISSING = re.compile(r"LoRA task \d+ not found in cache", re.IGNORECASE)


class _AdapterMissing(BackendRejected):
    """The engine has not, or no longer, the weights of the request's adapter."""


def error_from(foreign: Exception) -> BackendError:
    """Ours for gRPC's."""
    if not isinstance(foreign, grpc.aio.AioRpcError):
        return BackendError(f"the connection failed: {foreign or type(foreign).__name__}")
    kind = _CODES.get(foreign.code(), BackendError)
    what = {
        BackendUnavailable: "no answer from the server",
        BackendRejected: "the server refused the request",
    }.get(kind, "the server failed")
    return kind(f"{what}: {foreign.details()} ({foreign.code().name})")


def error_from_text(message: str) -> BackendError:
    """Ours for what a response on the stream says."""
    if _ADAPTER_MISSING.search(message):
        return _AdapterMissing(f"the server refused the request: {message}")
    for pattern, kind in _TEXTS:
        if pattern.search(message):
            return kind(f"the server failed: {message}")
    return BackendRejected(f"the server refused the request: {message}")


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
        self._stream: _Stream | None = None
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
            except _AdapterMissing:
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

    def _live_stream(self) -> _Stream:
        if self._stream is None or self._stream.is_broken:
            self._stream = _Stream(self._stub())
        return self._stream

    def _stub(self) -> Any:
        if self._is_closed:
            raise BackendUnavailable(f"the connection to {self.url} is closed")
        if self._channel is None:
            self._channel = _open_channel(self.url)
        return service_pb2_grpc.GRPCInferenceServiceStub(self._channel)


class _Stream:
    """The one stream: messages of all callers out, responses into each caller's inbox."""

    def __init__(self, stub: Any) -> None:
        self.is_broken = False
        self.inboxes: dict[str, asyncio.Queue[Any]] = {}
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()
        self._call = stub.ModelStreamInfer(self._messages())
        self._reader = asyncio.create_task(self._read(), name="compllm-triton-stream")

    def exchange(self, model: str, wire_id: str) -> _Exchange:
        return _Exchange(self, model, wire_id)

    def send(self, message: Any) -> None:
        self._outbox.put_nowait(message)

    async def aclose(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _messages(self) -> AsyncIterator[Any]:
        while (message := await self._outbox.get()) is not None:
            yield message

    async def _read(self) -> None:
        """Ends with the stream, and hands the reason to everybody who still waits."""
        end: Exception = BackendUnavailable("no answer from the server: it closed the stream")
        try:
            async for response in self._call:
                inbox = self.inboxes.get(response.infer_response.id)
                if inbox is not None:  # else: the last words of a request that was given up
                    inbox.put_nowait(response)
        except asyncio.CancelledError:
            end = BackendUnavailable("the connection was closed while the request was under way")
            raise
        except Exception as foreign:  # raised again by every exchange
            end = foreign
        finally:
            self.is_broken = True
            self._call.cancel()
            self._outbox.put_nowait(None)  # gRPC waits for the next message even of a dead stream
            for inbox in self.inboxes.values():
                inbox.put_nowait(end)


class _Exchange:
    """One request on the stream. Leaving the block before its end stops it there and then."""

    def __init__(self, stream: _Stream, model: str, wire_id: str) -> None:
        self.is_over = True  # nothing is under way: not yet, or no longer
        self._stream = stream
        self._model = model
        self._wire_id = wire_id
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()

    def __enter__(self) -> _Exchange:
        self._stream.inboxes[self._wire_id] = self._inbox
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        del self._stream.inboxes[self._wire_id]
        if not self.is_over:
            self._stream.send(wire.stop_message(self._model, self._wire_id))

    def send(self, message: Any) -> None:
        self.is_over = False
        self._stream.send(message)

    async def receive(self) -> wire.Tensors:
        """The next response. Raises our errors; each of them is the end."""
        answer = await self._inbox.get()
        if isinstance(answer, Exception):
            self.is_over = True
            ours = answer if isinstance(answer, BackendError) else error_from(answer)
            # A new object for each: many requests may raise the end of one stream.
            raise type(ours)(str(ours)) from answer
        if answer.error_message:
            self.is_over = True
            raise error_from_text(answer.error_message)
        self.is_over = wire.is_final(answer.infer_response)
        return wire.read_tensors(answer.infer_response)

    async def stop(self) -> wire.Tensors:
        """Stop the engine's work on a text that has ended for us. Gives the last response's
        tensors, or none where they do not come at once."""
        self._stream.send(wire.stop_message(self._model, self._wire_id))
        self.is_over = True
        num_ends = 0
        try:
            async with asyncio.timeout(_LAST_WORDS_S):
                while num_ends < 2:  # the request's own end, and the end of the request to stop
                    tensors = await self.receive()
                    if "num_input_tokens" in tensors:
                        return tensors
                    num_ends += self.is_over
        except (TimeoutError, BackendError):
            pass  # the text is complete without these numbers
        finally:
            self.is_over = True
        return {}


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
