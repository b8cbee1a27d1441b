"""What both backends for Triton have: the channel and its one stream.

`triton.py` and `llmapi.py` say what a message is; this carries it. attempts.py tries again while
nothing of an answer has been used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import grpc

from compllm.backend import GenerateRequest
from compllm.backends.attempts import Attempts, ClientOptions, OnRequest
from compllm.backends.channel import open_channel, stub_of, wait_ready
from compllm.backends.stream import CacheFull, Exchange, Stream
from compllm.errors import BackendUnavailable


class Connection(Attempts):
    """To the Triton at `url` (host:port). One per event loop."""

    def __init__(
        self, url: str, options: ClientOptions | None = None, on_request: OnRequest | None = None
    ) -> None:
        super().__init__(options, on_request)
        self.url = url
        self._channel: grpc.aio.Channel | None = None
        self._stream: Stream | None = None
        self._serial = itertools.count(1)

    def wire_id(self, request: GenerateRequest) -> str:
        """Unique here even where a caller uses an id again while its stop is under way."""
        return f"{request.id}#{next(self._serial)}"

    def exchange(self, wire_id: str, make_stop: Callable[[], Any]) -> Exchange:
        """One request on the stream, which is opened anew where it broke."""
        if self._stream is None or self._stream.is_broken:
            self._stream = Stream(self.stub())
            self.stats.num_streams += 1
        return self._stream.exchange(wire_id, make_stop)

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when the model can be asked. Raises BackendUnavailable when time is up."""
        await wait_ready(self.stub(), self.url, timeout_s)

    async def aclose(self) -> None:
        """Requests in flight fail with BackendUnavailable, and the server sees their stream go.
        Idempotent."""
        self.is_closed = True
        if self._stream is not None:
            await self._stream.aclose()
        if self._channel is not None:
            await self._channel.close()

    def stub(self) -> Any:
        if self.is_closed:
            raise BackendUnavailable(f"the connection to {self.url} is closed")
        if self._channel is None:
            self._channel = open_channel(self.url)
        return stub_of(self._channel)

    def can_retry(self, error: BaseException) -> bool:
        return super().can_retry(error) and not isinstance(error, CacheFull)
