"""attempts: which failed attempts are repeated, and what is counted."""

from __future__ import annotations

import pytest

from compllm.backend import GenerateRequest
from compllm.backends.attempts import Attempts, ClientOptions
from compllm.backends.client_stats import RequestStats
from compllm.errors import BackendRejected, BackendUnavailable, CompllmError

REQUEST = GenerateRequest("a", ())
SOON = ClientOptions(max_attempts=3, backoff_s=0.001, max_backoff_s=0.002)


class Attempt:
    """Fails with these errors in turn, then returns."""

    def __init__(self, *errors: CompllmError) -> None:
        self._errors = list(errors)
        self.num_calls = 0

    async def __call__(self) -> str:
        self.num_calls += 1
        if self._errors:
            raise self._errors.pop(0)
        return "first"


async def _begun(attempts: Attempts, attempt: Attempt) -> RequestStats:
    with attempts.recorded(REQUEST) as stats:
        assert await attempts.begun(attempt, stats) == "first"
        stats.ended("done")
    return stats


async def test_a_server_that_is_away_is_asked_again() -> None:
    attempts = Attempts(SOON)
    attempt = Attempt(BackendUnavailable("away"), BackendUnavailable("away"))
    assert (await _begun(attempts, attempt)).num_retries == 2
    assert attempts.stats.num_requests == 1


async def test_the_last_attempt_s_error_is_raised() -> None:
    errors = [BackendUnavailable(f"away {k}") for k in range(5)]
    attempt, seen = Attempt(*errors), []
    attempts = Attempts(SOON, seen.append)
    with pytest.raises(BackendUnavailable, match="away 2"):
        await _begun(attempts, attempt)
    assert attempt.num_calls == 3
    assert [each.outcome for each in seen] == ["failed"]


async def test_a_refused_request_is_sent_once() -> None:
    attempt = Attempt(BackendRejected("no"))
    with pytest.raises(BackendRejected):
        await _begun(Attempts(SOON), attempt)
    assert attempt.num_calls == 1


async def test_nothing_is_repeated_once_it_is_closed() -> None:
    attempts, attempt = Attempts(SOON), Attempt(BackendUnavailable("away"))
    attempts.is_closed = True
    with pytest.raises(BackendUnavailable):
        await _begun(attempts, attempt)
    assert attempt.num_calls == 1


async def test_leaving_before_the_end_counts_as_cancelled() -> None:
    attempts = Attempts()
    with attempts.recorded(REQUEST):
        pass
    assert attempts.stats.num_cancelled == 1
