"""What both backends have: the channel, its one stream, second attempts, statistics.

`triton.py` and `llmapi.py` say what a message is; this carries it, and tries again while nothing of
an answer has been used.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from compllm.backend import GenerateRequest
from compllm.backends.channel import open_channel, stub_of, wait_ready
from compllm.backends.client_stats import ClientStats, RequestStats
from compllm.backends.stream import CacheFull, Exchange, Stream
from compllm.errors import BackendUnavailable, CompllmError

_T = TypeVar("_T")
OnRequest = Callable[[RequestStats], None]


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """How long a request waits for what."""

    response_timeout_s: float = 300.0  # of silence; a whole answer comes as one response
    max_attempts: int = 4  # at a server that is away or overloaded, before any output
    backoff_s: float = 0.05  # before the second attempt at most; doubles, drawn at random
    max_backoff_s: float = 1.0
    adapter_wait_s: float = 60.0  # for a place in the engine's LoRA cache


class Connection:
    """To the Triton at `url` (host:port). One per event loop."""

    def __init__(
        self, url: str, options: ClientOptions | None = None, on_request: OnRequest | None = None
    ) -> None:
        self.url = url
        self.options = options or ClientOptions()
        self.stats = ClientStats()
        self._on_request = on_request
        self._channel: grpc.aio.Channel | None = None
        self._stream: Stream | None = None
        self._serial = itertools.count(1)
        self._is_closed = False

    def wire_id(self, request: GenerateRequest) -> str:
        """Unique here even where a caller uses an id again while its stop is under way."""
        return f"{request.id}#{next(self._serial)}"

    def exchange(self, wire_id: str, make_stop: Callable[[], Any]) -> Exchange:
        """One request on the stream, which is opened anew where it broke."""
        if self._stream is None or self._stream.is_broken:
            self._stream = Stream(self.stub())
            self.stats.num_streams += 1
        return self._stream.exchange(wire_id, make_stop)

    @contextmanager
    def recorded(self, request: GenerateRequest) -> Iterator[RequestStats]:
        """The request's statistics; leaving the block before they are `ended` is a cancellation."""
        stats = RequestStats(request.id, request.model, request.adapter_id)
        try:
            yield stats
        except CompllmError as error:
            stats.ended("failed", error)
            raise
        finally:
            if not stats.is_ended:
                stats.ended("cancelled")
            self.stats.add(stats)
            if self._on_request is not None:
                self._on_request(stats)

    async def begun(self, attempt: Callable[[], Awaitable[_T]], stats: RequestStats) -> _T:
        """What `attempt` returns: the first response. Before it nothing of the answer has been
        used, so that a server that was away or overloaded is asked again."""
        try:
            # Nearly always the only one, and tenacity's set-up is a seventh of a request's sending.
            return await attempt()
        except CompllmError as error:
            if not self._can_retry(error):
                raise
            failed: list[CompllmError] = [error]

        async def again() -> _T:
            if failed:
                raise failed.pop()  # the first attempt's error, for tenacity to count
            return await attempt()

        options = self.options
        retrying = AsyncRetrying(
            stop=stop_after_attempt(options.max_attempts),
            # Drawn at random: those whom one lost server sent away do not come back as one.
            wait=wait_random_exponential(options.backoff_s, options.max_backoff_s),
            retry=retry_if_exception(self._can_retry),
            reraise=True,
        )
        try:
            return await retrying(again)
        finally:
            stats.num_retries = retrying.statistics["attempt_number"] - 1

    async def wait_ready(self, timeout_s: float) -> None:
        """Return when the model can be asked. Raises BackendUnavailable when time is up."""
        await wait_ready(self.stub(), self.url, timeout_s)

    async def aclose(self) -> None:
        """Requests in flight fail with BackendUnavailable, and the server sees their stream go.
        Idempotent."""
        self._is_closed = True
        if self._stream is not None:
            await self._stream.aclose()
        if self._channel is not None:
            await self._channel.close()

    def stub(self) -> Any:
        if self._is_closed:
            raise BackendUnavailable(f"the connection to {self.url} is closed")
        if self._channel is None:
            self._channel = open_channel(self.url)
        return stub_of(self._channel)

    def _can_retry(self, error: BaseException) -> bool:
        is_away = isinstance(error, BackendUnavailable) and not isinstance(error, CacheFull)
        return is_away and not self._is_closed
