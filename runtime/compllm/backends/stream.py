"""The one gRPC stream of a process, and what goes wrong on it made into our errors.

Stands under `triton.py`: messages of all requests go out on one bidirectional stream, responses
find their request by its id. tritonclient's generated stubs are used rather than its own stream,
whose errors do not say which request they are about.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any

import grpc

from compllm.backends import wire
from compllm.errors import BackendError, BackendRejected, BackendUnavailable

_LAST_WORDS_S = 0.25  # for a stopped request's numbers to arrive

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
        (r"Encountered an error in forward|out of memory", BackendError),
        # Not a path of a backtrace: /usr/local/cuda/..., common/cudaUtils.h.
        (r"CUDA (runtime |driver )?error|\b(CUDA|CUBLAS|CUDNN|NCCL)_?ERROR", BackendError),
    )
)
_ADAPTER_MISSING = re.compile(r"LoRA task \d+ not found in cache", re.IGNORECASE)
# "Cache is full. There are no done tasks to evict", "PEFT Cache is full. Could not store taskId=7";
# and "Error storing task=7 in PEFT cache -- ... Assertion failed: pageIds.has_value()", where the
# adapters whose requests have ended free fewer pages than this one needs.
_CACHE_FULL = re.compile(
    r"Cache is full\b.*(no done tasks|could not store)|Error storing task=\d+ in PEFT cache",
    re.IGNORECASE,
)
_BACKTRACE = re.compile(r"^\d+ +0x[0-9a-f]+.*$", re.IGNORECASE | re.MULTILINE)


class AdapterMissing(BackendRejected):
    """The engine has not, or no longer, the weights of the request's adapter."""


class CacheFull(BackendUnavailable):
    """Every adapter in the engine's LoRA cache is in use."""


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
        return AdapterMissing(f"the server refused the request: {message}")
    if _CACHE_FULL.search(message):
        return CacheFull(f"the server failed: {message}")
    reason = _BACKTRACE.sub("", message)
    for pattern, kind in _TEXTS:
        if pattern.search(reason):
            return kind(f"the server failed: {message}")
    return BackendRejected(f"the server refused the request: {message}")


class Stream:
    """The one stream: messages of all callers out, responses into each caller's inbox."""

    def __init__(self, stub: Any) -> None:
        self.is_broken = False
        self.inboxes: dict[str, asyncio.Queue[Any]] = {}
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()
        self._call = stub.ModelStreamInfer(self._messages())
        self._reader = asyncio.create_task(self._read(), name="compllm-triton-stream")

    def exchange(self, wire_id: str, make_stop: Callable[[], Any]) -> Exchange:
        """make_stop: makes the message that stops this request."""
        return Exchange(self, wire_id, make_stop)

    def send(self, message: Any) -> None:
        self._outbox.put_nowait(message)

    async def aclose(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _messages(self) -> AsyncIterator[Any]:
        while (message := await self._outbox.get()) is not None:
            yield message

    async def _read(self) -> None:
        """End with the stream, and hand the reason to every request that still waits."""
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


class Exchange:
    """One request on the stream. Leaving the block before its end stops it there and then."""

    def __init__(self, stream: Stream, wire_id: str, make_stop: Callable[[], Any]) -> None:
        self.is_over = True  # nothing is under way: not yet, or no longer
        self._stream = stream
        self._wire_id = wire_id
        self._make_stop = make_stop
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()

    def __enter__(self) -> Exchange:
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
            self._stream.send(self._make_stop())

    def send(self, message: Any) -> None:
        self.is_over = False
        self._stream.send(message)

    async def receive(self, timeout_s: float | None = None) -> wire.Tensors:
        """The next response. Raises our errors; each of them is the end.

        timeout_s: of silence, after which leaving the block stops the request.
        """
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._inbox.get()
        except TimeoutError as error:
            raise BackendUnavailable(
                f"no answer from the server: it was silent for {timeout_s:g} s"
            ) from error
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
        self._stream.send(self._make_stop())
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
