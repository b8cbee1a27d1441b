"""openai: the Backend against a small server of this process that speaks the wire format."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from openai_loopback import BASE, OpenAILoopback, event
from path_parts import CATALOGUE, DIAMOND, IRON, NEON, settings

from compllm.backend import GenerateRequest, Guide, Segment, collect
from compllm.backends.attempts import ClientOptions
from compllm.backends.openai import OpenAIBackend
from compllm.errors import BackendError, BackendRejected, BackendUnavailable, ConfigError
from compllm.pipeline import CompLLM
from compllm.testing import HashingEncoder
from compllm.types import SamplingParams

ADAPTERS = {7: "chemistry", 8: "biology"}
SOON = ClientOptions(response_timeout_s=2.0, backoff_s=0.01, max_backoff_s=0.02)


@pytest.fixture
async def server() -> AsyncIterator[OpenAILoopback]:
    server = OpenAILoopback()
    server.models += ADAPTERS.values()
    stop = await server.start()
    yield server
    await stop()


@pytest.fixture
async def backend(server: OpenAILoopback, base_dir: Path) -> AsyncIterator[OpenAIBackend]:
    backend = await OpenAIBackend.connect(server.url, base_dir, ADAPTERS, options=SOON)
    yield backend
    await backend.aclose()


def _request(**more: Any) -> GenerateRequest:
    return GenerateRequest(**({"id": "a", "prompt": (Segment("hi"),)} | more))


async def test_text_counts_and_reason_arrive(
    server: OpenAILoopback, backend: OpenAIBackend
) -> None:
    text, last = await collect(backend, _request())
    assert text == "Hello"
    assert last.finish_reason == "stop"
    assert last.usage is not None
    assert (last.usage.num_input_tokens, last.usage.num_output_tokens) == (3, 2)
    assert server.asked[0]["prompt"] == backend.tokenizer.encode((Segment("hi"),))


async def test_streamed_text_comes_in_its_pieces(backend: OpenAIBackend) -> None:
    pieces = [chunk.text async for chunk in backend.generate(_request(is_streamed=True))]
    assert pieces == ["Hel", "lo", ""]


async def test_an_adapter_is_a_model_of_its_name(
    server: OpenAILoopback, backend: OpenAIBackend
) -> None:
    for adapter_id in (7, 8, None):
        await collect(backend, _request(adapter_id=adapter_id))
    assert [each["model"] for each in server.asked] == ["chemistry", "biology", BASE]
    with pytest.raises(BackendRejected, match="for adapter 9; known: 7, 8"):
        await collect(backend, _request(adapter_id=9))


async def test_leaving_early_closes_the_request_at_the_server(
    server: OpenAILoopback, backend: OpenAIBackend
) -> None:
    server.events, server.is_held = [event("Hel")], True
    async with aclosing(backend.generate(_request(is_streamed=True))) as chunks:
        assert (await anext(chunks)).text == "Hel"
    await asyncio.wait_for(server.was_left.wait(), 10)
    assert backend.attempts.stats.num_cancelled == 1


async def test_text_ends_before_a_stop_string(
    server: OpenAILoopback, backend: OpenAIBackend
) -> None:
    server.events = [event("one ST"), event("OP two"), event("", "length")]
    text, last = await collect(backend, _request(sampling=SamplingParams(stop=("STOP",))))
    assert (text, last.finish_reason) == ("one ", "stop")


async def test_an_overloaded_server_is_asked_again(
    server: OpenAILoopback, backend: OpenAIBackend
) -> None:
    server.refusals = [(503, "busy"), (429, "busy")]
    assert (await collect(backend, _request()))[0] == "Hello"
    assert backend.attempts.stats.num_retries == 2


async def test_a_refused_request_is_not_sent_again(
    server: OpenAILoopback, backend: OpenAIBackend
) -> None:
    server.refusals = [(400, '{"error": {"message": "too long"}}')]
    with pytest.raises(BackendRejected, match="answered 400: too long"):
        await collect(backend, _request())
    assert len(server.asked) == 1


async def test_a_response_without_an_end_is_an_error(
    server: OpenAILoopback, backend: OpenAIBackend
) -> None:
    server.events = [event("Hel")]
    with pytest.raises(BackendUnavailable, match="ended a response before its end"):
        await collect(backend, _request())


async def test_a_silent_server_is_given_up(server: OpenAILoopback, base_dir: Path) -> None:
    options = ClientOptions(response_timeout_s=0.2, max_attempts=1)
    backend = await OpenAIBackend.connect(server.url, base_dir, options=options)
    server.events, server.is_held = [], True
    with pytest.raises(BackendUnavailable, match="no answer from"):
        await collect(backend, _request())
    await backend.aclose()


async def test_events_that_are_none_are_errors(
    server: OpenAILoopback, backend: OpenAIBackend
) -> None:
    server.events = ["no JSON"]
    with pytest.raises(BackendError, match="event of a wrong form: 'no JSON'"):
        await collect(backend, _request())


async def test_a_closed_backend_sends_nothing(
    server: OpenAILoopback, backend: OpenAIBackend
) -> None:
    await backend.aclose()
    with pytest.raises(BackendUnavailable, match="closed"):
        await collect(backend, _request())
    assert server.asked == []


async def test_special_tokens_in_data_are_broken_where_text_is_sent(
    server: OpenAILoopback, base_dir: Path
) -> None:
    server.takes_ids = False
    backend = await OpenAIBackend.connect(server.url, base_dir)
    prompt = (Segment("<|im_start|>", is_template=True), Segment("<|im_end|>"))
    await collect(backend, _request(prompt=prompt))
    assert server.asked[0]["prompt"] == "<|im_start|>< |im_end|>"
    await backend.aclose()


async def test_many_requests_at_once_do_not_mix(
    server: OpenAILoopback, backend: OpenAIBackend
) -> None:
    found = await asyncio.gather(*(collect(backend, _request(id=str(k))) for k in range(50)))
    assert {text for text, _ in found} == {"Hello"}
    assert backend.attempts.stats.num_requests == 50


async def test_a_guide_is_sent_where_it_was_found_to_work(
    server: OpenAILoopback, base_dir: Path
) -> None:
    server.answer = lambda body: "zq7k" if "structured_outputs" in body else "x"
    backend = await OpenAIBackend.connect(server.url, base_dir)
    await collect(backend, _request(guide=Guide("regex", "a+")))
    assert server.asked[0]["structured_outputs"] == {"regex": "a+"}
    await backend.aclose()


async def test_the_key_is_sent(server: OpenAILoopback, base_dir: Path) -> None:
    backend = await OpenAIBackend.connect(f"{server.url}/v1", base_dir, key="secret")
    assert server.headers["Authorization"] == "Bearer secret"
    await backend.aclose()


async def test_the_base_is_named_where_there_are_several(
    server: OpenAILoopback, base_dir: Path
) -> None:
    with pytest.raises(ConfigError, match=r"no model named 'other': set server\.model"):
        await OpenAIBackend.connect(server.url, base_dir, base="other")
    backend = await OpenAIBackend.connect(server.url, base_dir, base="biology")
    await collect(backend, _request())
    assert server.asked[0]["model"] == "biology"
    await backend.aclose()


async def test_a_query_runs_over_it_from_plan_to_answer(
    server: OpenAILoopback, base_dir: Path
) -> None:
    """Plan, two experts at a time, their child with both responses; every model by its name."""
    server.takes_ids = False  # so that the prompts can be read here
    server.models = [BASE, "chem", "math"]
    responses = {IRON: "26", NEON: "10", "What is 26 plus": "36"}

    def write(body: dict[str, Any]) -> str:
        found = [text for asked, text in responses.items() if f"user\n{asked}" in body["prompt"]]
        return found[0] if found else "".join(DIAMOND)

    server.write = write
    names = {each.id: each.name for each in CATALOGUE.adapters}
    backend = await OpenAIBackend.connect(server.url, base_dir, names)
    async with CompLLM(backend, HashingEncoder(), CATALOGUE, settings()) as llm:
        answer = await llm.ask("Add the atomic numbers of iron and neon.")
    assert answer.text == "36"
    assert [each["model"] for each in server.asked] == [BASE, "chem", "chem", "math"]


@pytest.mark.parametrize("url", ["http://", "http://host:port"])
async def test_a_url_that_is_none_is_refused(url: str, base_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.url is"):
        await OpenAIBackend.connect(url, base_dir)
