"""openai_probe: what a server is found to do, and what is said where it lacks something."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from openai_loopback import BASE, OpenAILoopback

from compllm.backends import openai_probe
from compllm.backends.attempts import ClientOptions
from compllm.backends.openai import OpenAIBackend, open_client
from compllm.backends.openai_wire import Capabilities
from compllm.backends.tokenizer import Tokenizer
from compllm.errors import BackendRejected, BackendUnavailable, ConfigError


@pytest.fixture
async def server() -> AsyncIterator[OpenAILoopback]:
    server = OpenAILoopback()
    stop = await server.start()
    yield server
    await stop()


async def _found(server: OpenAILoopback, tokenizer: Tokenizer) -> Capabilities:
    async with open_client(server.url, "", ClientOptions()) as client:
        models = await openai_probe.models_at(client, 1.0)
        return await openai_probe.capabilities(client, models, BASE, tokenizer)


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        ("structured_outputs", lambda body: "zq7k" if "structured_outputs" in body else "x"),
        ("guided_regex", lambda body: "zq7k" if "guided_regex" in body else "x"),
        ("regex", lambda body: "zq7k" if "regex" in body else "x"),
        ("", lambda body: "x"),
    ],
)
async def test_a_guide_counts_only_where_the_text_follows_it(
    server: OpenAILoopback,
    tokenizer: Tokenizer,
    form: str,
    answer: Callable[[dict[str, Any]], str],
) -> None:
    server.answer = answer
    assert (await _found(server, tokenizer)).guide == form


async def test_text_is_sent_where_ids_are_refused(
    server: OpenAILoopback, tokenizer: Tokenizer
) -> None:
    assert (await _found(server, tokenizer)).takes_ids
    server.takes_ids = False
    found = await _found(server, tokenizer)
    assert not found.takes_ids
    assert found.has_log_probs
    assert found.max_seq_len == 2048


async def test_the_rows_for_people_name_what_is_missing(server: OpenAILoopback) -> None:
    rows = openai_probe.rows(Capabilities())
    assert rows["server"] == "unknown"
    assert "the parser alone" in rows["guided plans"]


async def test_a_missing_adapter_is_loaded_from_the_server_s_folder(
    server: OpenAILoopback, base_dir: Path
) -> None:
    backend = await OpenAIBackend.connect(
        server.url, base_dir, {7: "chemistry"}, adapters_dir="/adapters/"
    )
    assert server.loaded == [{"lora_name": "chemistry", "lora_path": "/adapters/chemistry"}]
    await backend.aclose()


async def test_a_missing_adapter_names_the_remedy(server: OpenAILoopback, base_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"no model named 'chemistry'.*--lora-modules chemistry="):
        await OpenAIBackend.connect(server.url, base_dir, {7: "chemistry"})


async def test_a_server_that_starts_is_waited_for(server: OpenAILoopback, base_dir: Path) -> None:
    server.refusals = [(503, "loading model")]
    await (await OpenAIBackend.connect(server.url, base_dir)).aclose()
    server.refusals = [(401, "no")]
    with pytest.raises(BackendRejected, match="answered 401"):
        await OpenAIBackend.connect(server.url, base_dir)


async def test_no_server_at_the_address(base_dir: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"no answer from http://127\.0\.0\.1:1/v1/"):
        await OpenAIBackend.connect("http://127.0.0.1:1", base_dir, timeout_s=0.01)


async def test_another_web_server_is_no_openai_server(
    server: OpenAILoopback, base_dir: Path
) -> None:
    server.refusals = [(200, "<html>hello</html>")]
    with pytest.raises(ConfigError, match="is not OpenAI's list of models"):
        await OpenAIBackend.connect(server.url, base_dir)


async def test_trtllm_serve_needs_the_folder_of_its_adapters(
    server: OpenAILoopback, base_dir: Path
) -> None:
    server.owner = "tensorrt_llm"
    with pytest.raises(ConfigError, match=r"trtllm-serve reads adapters itself: set server\.adap"):
        await OpenAIBackend.connect(server.url, base_dir, {7: "chemistry"})
