"""endpoints: experts that answer at other servers than the path's engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai_loopback import OpenAILoopback
from path_parts import CATALOGUE, DIAMOND, IRON, NEON, settings

from compllm.backend import GenerateRequest, Segment, collect
from compllm.backends.endpoints import ChatEngine, WithEndpoints, check_endpoint
from compllm.backends.openai import OpenAIBackend
from compllm.backends.select import connect_as_set
from compllm.catalogue import Catalogue, Endpoint
from compllm.config import ServerConfig
from compllm.errors import BackendRejected, BackendUnavailable, ConfigError
from compllm.pipeline import CompLLM
from compllm.testing import HashingEncoder
from compllm.types import Expert


@pytest.fixture
async def own() -> AsyncIterator[OpenAILoopback]:
    """The path's own engine."""
    server = OpenAILoopback()
    server.takes_ids = False  # so that the prompts can be read here
    server.models += ["chem", "math"]
    stop = await server.start()
    yield server
    await stop()


@pytest.fixture
async def theirs() -> AsyncIterator[OpenAILoopback]:
    """The server of one expert."""
    server = OpenAILoopback("other")
    server.models = ["big", "small"]
    stop = await server.start()
    yield server
    await stop()


def _with_endpoint(url: str, key_env: str = "") -> Catalogue:
    """CATALOGUE, whose chemistry is at `url`."""
    endpoint = Endpoint(url, "big", key_env)

    def moved(expert: Expert) -> Expert:
        if expert.name != "chemistry":
            return expert
        return replace(
            expert, model=endpoint.key, adapter=None, adapter_id=None, system="Few words."
        )

    experts = tuple(map(moved, CATALOGUE.experts))
    adapters = tuple(each for each in CATALOGUE.adapters if each.name != "chem")
    return replace(CATALOGUE, experts=experts, adapters=adapters, endpoints=(endpoint,))


def _write(body: dict[str, Any]) -> str:
    if "messages" in body:
        return {IRON: "26", NEON: "10"}[body["messages"][-1]["content"]]
    return "36" if "What is 26 plus" in body["prompt"] else "".join(DIAMOND)


async def test_an_expert_at_its_own_server_answers_its_part(
    own: OpenAILoopback, theirs: OpenAILoopback, base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIR_KEY", "secret")
    own.write = theirs.write = _write
    catalogue = _with_endpoint(theirs.url, "THEIR_KEY")
    server = replace(ServerConfig(), tokenizer=str(base_dir), model="base")
    backend = await connect_as_set(own.url, server, catalogue)
    async with CompLLM(backend, HashingEncoder(), catalogue, settings()) as llm:
        answer = await llm.ask("Add the atomic numbers of iron and neon.")
    assert answer.text == "36"
    assert [each["model"] for each in own.asked] == ["base", "math"]
    assert [each["model"] for each in theirs.asked] == ["big", "big"]
    system, user = theirs.asked[0]["messages"]
    assert system == {"role": "system", "content": "Few words."}
    assert user["content"] in (IRON, NEON)
    assert theirs.asked[0]["max_tokens"] > 0
    assert theirs.last_key == "Bearer secret"


async def test_the_base_answers_for_an_expert_whose_server_is_away(
    own: OpenAILoopback, base_dir: Path
) -> None:
    own.write = _write
    catalogue = _with_endpoint("http://127.0.0.1:9")
    server = replace(ServerConfig(), tokenizer=str(base_dir), model="base")
    backend = await connect_as_set(own.url, server, catalogue)
    async with CompLLM(backend, HashingEncoder(), catalogue, settings()) as llm:
        answer = await llm.ask("Add the atomic numbers of iron and neon.")
    assert [each.expert for each in answer.nodes] == ["base", "base", "mathematics"]
    assert [each["model"] for each in own.asked] == ["base", "base", "base", "math"]


async def test_a_key_that_is_not_set_is_named(own: OpenAILoopback) -> None:
    with pytest.raises(ConfigError, match="key_env names the environment variable NO_KEY"):
        await connect_as_set(own.url, ServerConfig(), _with_endpoint(own.url, "NO_KEY"))


async def test_usage_and_reason_are_the_servers(theirs: OpenAILoopback) -> None:
    engine = ChatEngine(Endpoint(theirs.url, "big"), "")
    prompt = (Segment("<|user|>", is_template=True), Segment("hi", role="user"))
    text, last = await collect(engine, GenerateRequest("a", prompt))
    assert (text, last.finish_reason) == ("Hello", "stop")
    assert last.usage is not None
    assert (last.usage.num_input_tokens, last.usage.num_output_tokens) == (3, 2)
    with pytest.raises(BackendRejected, match="no turns"):
        await collect(engine, GenerateRequest("b", (Segment("hi"),)))
    await engine.aclose()


async def test_limits_are_the_own_engines_and_a_few_requests_at_an_endpoint(
    own: OpenAILoopback, base_dir: Path
) -> None:
    backend = await OpenAIBackend.connect(own.url, base_dir, base="base")
    endpoint = Endpoint(own.url, "big")
    both = WithEndpoints(backend, [ChatEngine(endpoint, "")])
    assert (both.max_batch_size(endpoint.key), both.max_batch_size("base")) == (16, None)
    assert (both.max_seq_len(endpoint.key), both.max_seq_len("base")) == (None, 2048)
    assert await both.num_tokens((Segment("hi"),)) == 1
    await both.aclose()
    with pytest.raises(BackendUnavailable, match="closed"):
        await collect(both, GenerateRequest("a", (Segment("hi", role="user"),), model=endpoint.key))


async def test_an_endpoint_is_tried_before_it_is_taken(theirs: OpenAILoopback) -> None:
    assert await check_endpoint(Endpoint(theirs.url, "big"), "") == "Hello"
    with pytest.raises(ConfigError, match="no model named 'none': give --model one of big, small"):
        await check_endpoint(Endpoint(theirs.url, "none"), "")
    theirs.refusals.append((401, "no"))
    with pytest.raises(ConfigError, match="Set the expert's key_env"):
        await check_endpoint(Endpoint(theirs.url, "big"), "wrong")


async def test_a_server_that_speaks_something_else_is_named_with_the_remedy(
    theirs: OpenAILoopback,
) -> None:
    theirs.refusals.append((200, "<html>"))
    with pytest.raises(ConfigError, match="is --url the address that ends before /v1"):
        await check_endpoint(Endpoint(theirs.url, "big"), "")
    for events, said in (
        (['{"choices": "banana"}'], "sent an event of a wrong form"),
        ([], "answered nothing"),
    ):
        theirs.events = events
        with pytest.raises(ConfigError, match=f"{said}.*: start that server, or correct --url"):
            await check_endpoint(Endpoint(theirs.url, "big"), "")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://"])
async def test_an_endpoint_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"no answer from|names no host"):
        await asyncio.wait_for(check_endpoint(Endpoint(url, "m"), "", timeout_s=0.1), 10)
