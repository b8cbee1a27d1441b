"""Servers that refuse, fall silent or go away, as the gRPC client sees them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import pytest
from loopback import Loopback, Respond, answer_hello, never

from compllm.backend import GenerateRequest, Segment, collect
from compllm.backends.attempts import ClientOptions
from compllm.backends.client_stats import RequestStats
from compllm.backends.tokenizer import Tokenizer
from compllm.backends.triton import TritonBackend
from compllm.errors import BackendError, BackendRejected, BackendUnavailable


def _request(name: str = "a", **more: Any) -> GenerateRequest:
    return GenerateRequest(**({"id": name, "prompt": (Segment("hi"),)} | more))


async def test_error_ends_only_its_own_request(loopback: Loopback, backend: TritonBackend) -> None:
    async def handler(message: Any, respond: Respond) -> None:
        if message.id.startswith("bad"):
            await respond(error="unexpected inference input")
        else:
            await answer_hello(message, respond)

    loopback.handler = handler
    results = await asyncio.gather(
        collect(backend, _request("bad")), collect(backend, _request()), return_exceptions=True
    )
    assert isinstance(results[0], BackendRejected)
    assert not isinstance(results[1], BaseException)


async def test_lost_server_fails_every_request_in_flight(
    loopback: Loopback, backend: TritonBackend
) -> None:
    loopback.handler = never
    streams = [backend.generate(_request(str(k), is_streamed=True)) for k in range(3)]
    for each in streams:
        await anext(each)
    await loopback.server.stop(None)
    for each in streams:
        with pytest.raises(BackendUnavailable) as caught:
            await anext(each)
        assert isinstance(caught.value.__cause__, Exception)


async def test_nobody_at_the_address(tokenizer: Tokenizer) -> None:
    backend = TritonBackend("127.0.0.1:1", tokenizer)
    with pytest.raises(BackendUnavailable, match="no answer from the server"):
        await collect(backend, _request())
    with pytest.raises(BackendUnavailable, match=r"no ready server at 127\.0\.0\.1:1 within"):
        await backend.wait_ready(0.01)
    await backend.aclose()


async def test_lost_connection_is_tried_again_before_any_output(
    loopback: Loopback, tokenizer: Tokenizer
) -> None:
    seen: list[RequestStats] = []
    options = ClientOptions(backoff_s=0.001, max_backoff_s=0.002)
    backend = TritonBackend(loopback.url, tokenizer, options=options, on_request=seen.append)
    num_lost = 0

    async def handler(message: Any, respond: Respond) -> None:
        nonlocal num_lost
        num_lost += 1
        if num_lost < 3:
            await respond(error="the engine is shut down", is_final=True)
        else:
            await answer_hello(message, respond)

    loopback.handler = handler
    assert (await collect(backend, _request()))[0] == "hello world"
    await backend.aclose()
    assert (seen[0].num_retries, seen[0].num_attempts, seen[0].outcome) == (2, 3, "done")
    assert backend.stats.num_retries == 2


async def test_what_a_refused_request_asked_for_is_not_tried_again(
    loopback: Loopback, backend: TritonBackend
) -> None:
    async def handler(message: Any, respond: Respond) -> None:
        await respond(error="unexpected inference input", is_final=True)

    loopback.handler = handler
    with pytest.raises(BackendRejected):
        await collect(backend, _request())
    assert len(loopback.messages) == 1
    assert (backend.stats.num_failed, backend.stats.num_requests) == (1, 1)


async def test_silent_server_is_given_up_and_told_so(
    loopback: Loopback, tokenizer: Tokenizer
) -> None:
    loopback.handler = never
    options = ClientOptions(response_timeout_s=0.05, max_attempts=1)
    backend = TritonBackend(loopback.url, tokenizer, options=options)
    with pytest.raises(BackendUnavailable, match=r"silent for 0\.05 s"):
        await collect(backend, _request())
    assert await loopback.stopped.get() == loopback.messages[0].id
    await backend.aclose()


async def test_statistics_tell_of_a_cancelled_request(
    loopback: Loopback, backend: TritonBackend
) -> None:
    loopback.handler = never
    async with aclosing(backend.generate(_request(is_streamed=True))) as chunks:
        await anext(chunks)
    assert backend.stats.num_cancelled == backend.stats.num_requests == 1
    assert backend.stats.num_output_tokens == 1


async def test_broken_stream_is_replaced(loopback: Loopback, backend: TritonBackend) -> None:
    async def handler(message: Any, respond: Respond) -> None:
        raise RuntimeError("the whole stream ends")

    loopback.handler = handler
    with pytest.raises(BackendError):
        await collect(backend, _request())
    loopback.handler = answer_hello
    assert (await collect(backend, _request()))[0] == "hello world"


async def test_closed_backend_fails_what_is_under_way_and_refuses_more(
    loopback: Loopback, backend: TritonBackend
) -> None:
    loopback.handler = never
    chunks = backend.generate(_request(is_streamed=True))
    await anext(chunks)
    await backend.aclose()
    with pytest.raises(BackendUnavailable, match="closed while"):
        await anext(chunks)
    with pytest.raises(BackendUnavailable, match="is closed"):
        await collect(backend, _request())
    await backend.aclose()
