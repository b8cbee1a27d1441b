"""What every backend does around a request: its statistics, and second attempts.

`connection.py` (Triton) and `openai.py` (HTTP) build on it; each says what one attempt is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from compllm.backend import GenerateRequest
from compllm.backends.client_stats import ClientStats, RequestStats
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


class Attempts:
    """Records requests and repeats their first attempts. One per backend."""

    def __init__(self, options: ClientOptions | None = None, on_request: OnRequest | None = None):
        self.options = options or ClientOptions()
        self.stats = ClientStats()
        self.is_closed = False
        self._on_request = on_request

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
            if not self.can_retry(error):
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
            retry=retry_if_exception(self.can_retry),
            reraise=True,
        )
        try:
            return await retrying(again)
        finally:
            stats.num_retries = retrying.statistics["attempt_number"] - 1

    def can_retry(self, error: BaseException) -> bool:
        return isinstance(error, BackendUnavailable) and not self.is_closed
