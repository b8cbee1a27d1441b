"""The second backend through a real tritonserver that serves the llmapi repository's tensors."""

from __future__ import annotations

import asyncio
import contextlib
import re
import string
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from path_parts import CATALOGUE

from compllm.backend import GenerateRequest, Guide, Segment, collect
from compllm.backends.llmapi import LlmApiBackend
from compllm.backends.llmapi_wire import ServerAdapter
from compllm.backends.select import connect, connect_as_set
from compllm.backends.tokenizer import Tokenizer
from compllm.config import ServerConfig
from compllm.errors import BackendRejected, ConfigError
from compllm.server import triton_files, triton_process
from compllm.server.triton_state import Ports, ServerInfo
from compllm.types import SamplingParams

pytestmark = pytest.mark.triton

REPOSITORY = Path(__file__).parent / "llmapi_repo"
WHOLE = "tensorrt_llm_whole"  # the same model, not decoupled
WAIT_S = 30.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInfo]:
    directory = tmp_path_factory.mktemp("llmapi")
    source = REPOSITORY / "tensorrt_llm"
    config = string.Template((source / "config.pbtxt").read_text(encoding="utf-8"))
    for name, decoupled in (("tensorrt_llm", "true"), (WHOLE, "false")):
        model = directory / "models" / name
        (model / "1").mkdir(parents=True)
        (model / "1" / "model.py").symlink_to(source / "1" / "model.py")
        filled = config.substitute(name=name, decoupled=decoupled)
        (model / "config.pbtxt").write_text(filled, encoding="utf-8")
    binary = triton_files.find_tritonserver()
    backends = triton_files.make_backends(binary, directory / "backends")
    bound = triton_process.free_ports(Ports())
    info = triton_process.spawn(binary, directory / "models", backends, bound)
    try:
        triton_process.wait_ready(info, time.monotonic() + 60, 60)
        yield info
    finally:
        triton_process.stop(info)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[int, ServerAdapter]:
    there = tmp_path_factory.mktemp("adapters")
    return {
        7: ServerAdapter("chemistry", str(there)),
        8: ServerAdapter("biology", str(there / "gone")),
    }


@pytest.fixture
async def backend(
    server: ServerInfo, base_dir: Path, adapters: dict[int, ServerAdapter]
) -> AsyncIterator[LlmApiBackend]:
    backend = await connect(server.grpc_url, base_dir, server_adapters=adapters)
    assert isinstance(backend, LlmApiBackend)
    yield backend
    await backend.aclose()


def _request(text: str = "one two three", max_tokens: int = 5, **more: Any) -> GenerateRequest:
    given: dict[str, Any] = {
        "id": "r",
        "prompt": (Segment(text),),
        "sampling": SamplingParams(max_tokens),
    } | more
    return GenerateRequest(**given)


async def _until_idle(server: ServerInfo, model: str = "tensorrt_llm") -> None:
    def active() -> str:
        with urllib.request.urlopen(server.metrics_url) as answer:
            found = re.search(rf"^stand_in_active_{model} (\S+)", answer.read().decode(), re.M)
        assert found is not None
        return found[1]

    async with asyncio.timeout(WAIT_S):
        while float(await asyncio.to_thread(active)):
            pass


async def test_accumulated_text_becomes_new_text(backend: LlmApiBackend) -> None:
    chunks = [chunk async for chunk in backend.generate(_request(is_streamed=True))]
    assert len(chunks) > 1
    assert "".join(chunk.text for chunk in chunks) == "one two three one two "
    assert chunks[-1].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.num_input_tokens == 3
    assert chunks[-1].usage.total_s >= chunks[-1].usage.first_token_s > 0


async def test_unstreamed_answer_is_one_chunk(backend: LlmApiBackend) -> None:
    chunks = [chunk async for chunk in backend.generate(_request("one two END"))]
    assert [(c.text, c.finish_reason) for c in chunks] == [("one two ", "stop")]


async def test_adapter_is_named_with_its_path(backend: LlmApiBackend) -> None:
    text, _ = await collect(backend, _request(max_tokens=2, adapter_id=7))
    assert text == "[chemistry]one [chemistry]two "
    with pytest.raises(BackendRejected, match="lora_path does not exist"):
        await collect(backend, _request(adapter_id=8))
    with pytest.raises(BackendRejected, match="no path on the server is known for adapter 9"):
        await collect(backend, _request(adapter_id=9))


async def test_settings_name_the_folder_of_the_adapters(
    server: ServerInfo, base_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "chem").mkdir()
    settings = ServerConfig(tokenizer=str(base_dir), adapters_dir=str(tmp_path))
    backend = await connect_as_set(server.grpc_url, settings, CATALOGUE)
    text, _ = await collect(backend, _request(max_tokens=1, adapter_id=7))
    assert text == "[chem]one "
    await backend.aclose()


async def test_many_requests_share_the_one_stream(backend: LlmApiBackend) -> None:
    requests = [_request(f"word{k}", 20, id=str(k), is_streamed=k % 2 == 0) for k in range(32)]
    answers = await asyncio.gather(*(collect(backend, each) for each in requests))
    assert [text for text, _ in answers] == [f"word{k} " * 20 for k in range(32)]
    assert backend.stats.num_streams == 1


async def test_stop_string_cuts_the_text(backend: LlmApiBackend, server: ServerInfo) -> None:
    sampling = SamplingParams(max_tokens=4000, stop=("three",))
    text, last = await collect(backend, _request(sampling=sampling))
    assert (text, last.finish_reason) == ("one two ", "stop")
    await _until_idle(server)


async def test_closing_the_iterator_frees_the_server(
    backend: LlmApiBackend, server: ServerInfo
) -> None:
    request = _request(max_tokens=100_000, is_streamed=True)
    async with contextlib.aclosing(backend.generate(request)) as chunks:
        await anext(chunks)
    await _until_idle(server)
    assert backend.stats.num_cancelled == 1


async def test_model_that_does_not_stream_answers_as_a_whole(
    server: ServerInfo, base_dir: Path
) -> None:
    backend = await connect(server.grpc_url, base_dir, model=WHOLE)
    request = _request(model=WHOLE, is_streamed=True)
    chunks = [chunk async for chunk in backend.generate(request)]
    assert [(c.text, c.finish_reason) for c in chunks] == [("one two three one two ", "length")]
    await backend.aclose()


async def test_what_llmapi_cannot_do_is_refused(backend: LlmApiBackend) -> None:
    with pytest.raises(BackendRejected, match=r"generator\.is_guided = false"):
        await collect(backend, _request(guide=Guide("regex", "[0-9]")))
    with pytest.raises(BackendRejected, match="repetition penalty"):
        await collect(backend, _request(sampling=SamplingParams(repetition_penalty=1.1)))
    with pytest.raises(BackendRejected, match="least number of tokens"):
        await collect(backend, _request(sampling=SamplingParams(min_tokens=2)))


async def test_server_without_lora_inputs_is_not_asked_for_adapters(
    server: ServerInfo, base_dir: Path, adapters: dict[int, ServerAdapter]
) -> None:
    tokenizer = Tokenizer.from_dir(base_dir)
    backend = LlmApiBackend(server.grpc_url, tokenizer, adapters, has_lora=False)
    with pytest.raises(BackendRejected, match=r"TensorRT-LLM 1\.3"):
        await collect(backend, _request(adapter_id=7))
    await backend.aclose()


async def test_special_tokens_in_data_reach_the_server_broken(backend: LlmApiBackend) -> None:
    prompt = (Segment("<|im_start|> ", is_template=True), Segment("<|im_end|>"))
    text, _ = await collect(backend, _request(prompt=prompt, max_tokens=3))
    assert text == "<|im_start|> < |im_end|> "


async def test_numbers_that_come_as_text_are_read(server: ServerInfo, base_dir: Path) -> None:
    backend = LlmApiBackend(server.grpc_url, Tokenizer.from_dir(base_dir), wants_perf=True)
    usage = (await collect(backend, _request()))[1].usage
    await backend.aclose()
    assert usage is not None
    assert (usage.kv_reused_blocks, usage.first_token_s, usage.total_s) == (3, 1.0, 2.0)


async def test_tokenizer_must_be_given(server: ServerInfo) -> None:
    with pytest.raises(ConfigError, match="names no tokenizer"):
        await connect(server.grpc_url)
