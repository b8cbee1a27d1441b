"""Text through a real tritonserver: TritonBackend, the core model and the embedded engine."""

from __future__ import annotations

import asyncio
import contextlib
import re
import urllib.request
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from compllm.backend import Chunk, GenerateRequest, Guide, Segment, collect
from compllm.backends import wire
from compllm.backends.tokenizer import SpecialIds
from compllm.backends.triton import TritonBackend
from compllm.errors import BackendRejected, BackendUnavailable
from compllm.formats.adapters import read_peft
from compllm.formats.lora_tensors import read_base_shape, to_tensors
from compllm.server import triton_server
from compllm.server.triton_state import ServerInfo
from compllm.types import SamplingParams

pytestmark = pytest.mark.triton

PROMPT = (Segment("<|im_start|>user\n", is_template=True), Segment("What is iron?"))
LONG = SamplingParams(max_tokens=400, temperature=1.0)
WAIT_S = 30.0


@pytest.fixture
async def backend(server: ServerInfo) -> AsyncIterator[TritonBackend]:
    backend = await TritonBackend.connect(server.grpc_url)
    yield backend
    await backend.aclose()


def _request(number: int = 0, max_tokens: int = 16, **more: Any) -> GenerateRequest:
    given: dict[str, Any] = {
        "id": f"r{number}",
        "prompt": PROMPT,
        "sampling": SamplingParams(max_tokens),
    } | more
    return GenerateRequest(**given)


def _gauge(server: ServerInfo, family: str, label: str = "") -> float:
    with urllib.request.urlopen(server.metrics_url) as answer:
        text = answer.read().decode()
    values = re.findall(rf"^{family}{{.*{label}.*}} (\S+)$", text, re.MULTILINE)
    return float(values[0]) if values else 0.0


async def _until_idle(server: ServerInfo) -> None:
    """Until the engine's own count of active requests is 0, as Triton's metrics show it."""
    async with asyncio.timeout(WAIT_S):
        while await asyncio.to_thread(_gauge, server, "nv_trt_llm_request_metrics", '"active"'):
            pass


async def test_streamed_and_whole_answers_are_the_same(backend: TritonBackend) -> None:
    whole = [chunk async for chunk in backend.generate(_request())]
    streamed = [chunk async for chunk in backend.generate(_request(is_streamed=True))]
    assert len(whole) == 1
    assert len(streamed) > 1
    assert "".join(chunk.text for chunk in streamed) == whole[0].text
    assert sum(chunk.num_tokens for chunk in streamed) == whole[0].num_tokens == 16
    assert whole[0].finish_reason == streamed[-1].finish_reason == "length"


async def test_streamed_and_whole_answers_have_the_same_log_probs(backend: TritonBackend) -> None:
    _, whole = await collect(backend, _request(wants_log_probs=True))
    _, streamed = await collect(backend, _request(is_streamed=True, wants_log_probs=True))
    _, plain = await collect(backend, _request())
    assert len(whole.log_probs) == 16
    assert max(whole.log_probs) < 0
    assert streamed.log_probs == pytest.approx(whole.log_probs, abs=1e-4)
    assert plain.log_probs == ()


async def test_usage_is_the_engines_report(backend: TritonBackend) -> None:
    prompt = (Segment("iron " * 100),)
    await collect(backend, _request(prompt=prompt))
    _, last = await collect(backend, _request(prompt=prompt))
    usage = last.usage
    assert usage is not None
    assert (usage.num_input_tokens, usage.num_output_tokens) == (
        len(backend.tokenizer.encode(prompt)),
        16,
    )
    assert usage.kv_reused_blocks > 0
    assert usage.kv_alloc_blocks > usage.kv_reused_blocks
    assert 0 < usage.scheduled_s <= usage.first_token_s <= usage.total_s


async def test_adapters_answer_differently_in_one_batch_as_alone(
    backend: TritonBackend, task_ids: dict[str, int], server: ServerInfo
) -> None:
    ids = (None, *task_ids.values())
    alone = [await collect(backend, _request(adapter_id=each)) for each in ids]
    assert len({text for text, _ in alone}) == 3
    mixed_before = _gauge(server, "compllm_mixed_steps_total")
    # The tiny engine may answer one before a starved client sends the next, and shows its counters
    # ten times a second.
    async with asyncio.timeout(WAIT_S):
        while _gauge(server, "compllm_mixed_steps_total") == mixed_before:
            mixed = await asyncio.gather(
                *(collect(backend, _request(k, adapter_id=each)) for k, each in enumerate(ids))
            )
            assert [text for text, _ in mixed] == [text for text, _ in alone]
            await _until_idle(server)


async def test_many_requests_share_the_one_stream(
    backend: TritonBackend, server: ServerInfo
) -> None:
    requests = [
        _request(k, sampling=SamplingParams(32, temperature=1.0, seed=k)) for k in range(40)
    ]
    results = await asyncio.gather(*(collect(backend, each) for each in requests))
    assert [last.usage.num_output_tokens for _, last in results if last.usage] == [32] * 40
    again = await collect(backend, requests[7])
    assert again[0] == results[7][0]
    assert _gauge(server, "nv_trt_llm_request_metrics", '"max"') == 32


async def test_guide_binds_the_output(backend: TritonBackend) -> None:
    text, last = await collect(backend, _request(guide=Guide("regex", "[0-9]{3}, yes")))
    assert re.fullmatch("[0-9]{3}, yes", text)
    assert last.finish_reason == "stop"


async def test_stop_string_cuts_the_text_and_ends_the_engines_work(
    backend: TritonBackend, server: ServerInfo
) -> None:
    whole, _ = await collect(backend, _request(max_tokens=40))
    stop = whole[10:13]
    sampling = SamplingParams(max_tokens=400, stop=(stop,))
    chunks = [chunk async for chunk in backend.generate(_request(sampling=sampling))]
    assert len(chunks) == 1
    assert chunks[0].text == whole.partition(stop)[0]
    assert chunks[0].finish_reason == "stop"
    assert chunks[0].usage is not None
    assert chunks[0].usage.total_s > 0
    await _until_idle(server)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": SamplingParams(max_tokens=5000)}, "max_seq_len"),
        ({"sampling": SamplingParams(max_tokens=0)}, "max_tokens"),
        ({"prompt": ()}, "input_lengths"),
        ({"adapter_id": 12345}, "LoRA task 12345 not found in cache. Please send LoRA weights"),
        ({"guide": Guide("regex", "[0-9")}, "regex"),
        ({"model": "nobody"}, "unknown model"),
        ({"sampling": SamplingParams(repetition_penalty=-1.0)}, "repetition_penalty"),
    ],
)
async def test_bad_request_is_refused_with_its_reason(
    backend: TritonBackend, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackendRejected, match=re.escape(message)):
        await collect(backend, _request(**change))
    assert (await collect(backend, _request()))[1].finish_reason == "length"


async def test_closing_the_iterator_frees_the_engine(
    backend: TritonBackend, server: ServerInfo
) -> None:
    async with contextlib.aclosing(
        backend.generate(_request(sampling=LONG, is_streamed=True))
    ) as chunks:
        first = await anext(chunks)
    assert first.finish_reason is None
    await _until_idle(server)


async def test_cancelled_tasks_free_the_engine(backend: TritonBackend, server: ServerInfo) -> None:
    before = _gauge(server, "compllm_generated_tokens_total")
    tasks = [asyncio.ensure_future(collect(backend, _request(k, sampling=LONG))) for k in range(8)]
    async for _ in backend.generate(_request(99, max_tokens=4, is_streamed=True)):
        pass  # now the others have been under way for some steps
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await _until_idle(server)
    assert _gauge(server, "compllm_generated_tokens_total") - before < 8 * LONG.max_tokens


async def test_closing_the_connection_frees_the_engine(server: ServerInfo) -> None:
    """No stop is sent here: the server itself sees the stream go."""
    request = _request(sampling=LONG, is_streamed=True)
    message = wire.inference_message(
        request, "gone", [5, 6, 7], SpecialIds(-1, 2), is_streamed=True
    )
    async with grpc.aio.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)

        async def messages() -> AsyncIterator[service_pb2.ModelInferRequest]:
            yield message
            await asyncio.Event().wait()

        call = stub.ModelStreamInfer(messages())
        await call.read()
        call.cancel()
    await _until_idle(server)
    assert _gauge(server, "nv_trt_llm_request_metrics", '"active"') == 0


async def test_missing_adapter_is_sent_once(
    server: ServerInfo,
    engine_dir: Path,
    tiny_checkpoint: Path,
    make_adapter: Callable[..., Path],
    backend: TritonBackend,
) -> None:
    directory = make_adapter(tiny_checkpoint, "physics", seed=7, scale=1.0)
    adapter = read_peft(directory, read_base_shape(engine_dir))
    asked = []

    def weights(task_id: int) -> wire.AdapterTensors:
        asked.append(task_id)
        return to_tensors(adapter)

    sender = TritonBackend(server.grpc_url, backend.tokenizer, weights)
    request = _request(adapter_id=adapter.task_id)
    text, _ = await collect(sender, request)
    await sender.aclose()
    assert asked == [adapter.task_id]
    assert text == (await collect(backend, request))[0]  # it is there now, for everybody
    assert text != (await collect(backend, _request()))[0]


async def test_weights_that_do_not_fit_are_refused(
    server: ServerInfo, backend: TritonBackend
) -> None:
    wrong = np.zeros((1, 8), np.float16), np.array([[1, 0, 4, 0]], np.int32)
    sender = TritonBackend(server.grpc_url, backend.tokenizer, lambda task_id: wrong)
    with pytest.raises(BackendRejected, match="Invalid low_rank"):
        await collect(sender, _request(adapter_id=4711))
    await sender.aclose()


async def test_server_killed_in_mid_answer_fails_all_and_its_successor_is_found(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    info = await asyncio.to_thread(triton_server.up, engine_dir)
    backend = await TritonBackend.connect(info.grpc_url)
    try:
        answers = [backend.generate(_request(k, sampling=LONG, is_streamed=True)) for k in range(4)]
        for each in answers:
            assert (await anext(each)).finish_reason is None
        psutil.Process(info.server_pid).kill()
        for each in answers:
            with pytest.raises(BackendUnavailable):
                await _drain(each)
        with pytest.raises(BackendUnavailable):
            await backend.wait_ready(0.01)
        again = await asyncio.to_thread(triton_server.up, engine_dir, grpc_port=info.grpc_port)
        await backend.wait_ready(WAIT_S)
        assert again.server_pid != info.server_pid
        assert (await collect(backend, _request()))[1].finish_reason == "length"
    finally:
        await backend.aclose()
        await asyncio.to_thread(triton_server.down)


async def _drain(chunks: AsyncIterator[Chunk]) -> None:
    async for _ in chunks:
        pass
