"""The life of adapters through a real tritonserver whose LoRA cache holds fewer than there are."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from helpers import MakeAdapter

from compllm.backend import GenerateRequest, Segment, collect
from compllm.backends.triton import TritonBackend
from compllm.build_scripts.build_openvino import AdapterSource, build_engine
from compllm.errors import BackendRejected
from compllm.formats.manifest import Manifest
from compllm.server import triton_server
from compllm.server.triton_state import ServerInfo
from compllm.types import SamplingParams

pytestmark = pytest.mark.triton

NUM_ADAPTERS, NUM_SLOTS, NUM_REQUESTS = 8, 2, 64


@pytest.fixture(scope="module")
def crowded_engine(
    tiny_checkpoint: Path, make_adapter: MakeAdapter, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("engines") / "crowded"
    names = [f"expert-{number}" for number in range(NUM_ADAPTERS)]
    sources = [
        AdapterSource(make_adapter(tiny_checkpoint, name, seed=seed, scale=1.0), name)
        for seed, name in enumerate(names)
    ]
    build_engine(tiny_checkpoint, sources, out, "fp16")
    return out


@pytest.fixture(scope="module")
def adapter_ids(crowded_engine: Path) -> tuple[int, ...]:
    return tuple(entry.task_id for entry in Manifest.read(crowded_engine).adapters)


@pytest.fixture(scope="module")
def server(crowded_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInfo]:
    options = {"max_adapters": NUM_SLOTS, "is_lora_cache": True}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPLLM_HOME", str(tmp_path_factory.mktemp("home")))
        with triton_server.running(crowded_engine, options=options, is_shared=False) as info:
            patch.undo()
            yield info


@pytest.fixture
async def backend(server: ServerInfo) -> AsyncIterator[TritonBackend]:
    backend = await TritonBackend.connect(server.grpc_url)
    yield backend
    await backend.aclose()


def _request(number: int, adapter_id: int | None, max_tokens: int = 48) -> GenerateRequest:
    prompt = (Segment("What is iron?"),)
    return GenerateRequest(f"r{number}", prompt, SamplingParams(max_tokens), adapter_id=adapter_id)


def _metrics(server: ServerInfo) -> dict[str, int]:
    """Our own counters by name, with the label's value where there is one."""
    with urllib.request.urlopen(server.metrics_url) as answer:
        text = answer.read().decode()
    found: dict[str, int] = {}
    for name, labels, value in re.findall(r"^compllm_(\w+){([^}]*)} (\S+)$", text, re.MULTILINE):
        kind = re.search(r'type="(\w+)"', labels)
        found[f"{name} {kind[1]}" if kind else name] = int(float(value))
    return found


async def _settled(server: ServerInfo, num_tokens: int) -> dict[str, int]:
    """The counters once they have these tokens: they are published a little later."""
    async with asyncio.timeout(30):
        while True:
            found = await asyncio.to_thread(_metrics, server)
            if found.get("generated_tokens_total", 0) >= num_tokens:
                return found


async def test_eviction_storm_is_answered_by_the_right_adapters(
    server: ServerInfo, backend: TritonBackend, adapter_ids: tuple[int, ...]
) -> None:
    alone = {each: (await collect(backend, _request(0, each)))[0] for each in adapter_ids}
    assert len(set(alone.values())) == NUM_ADAPTERS
    before = await _settled(server, backend.stats.num_output_tokens)
    storming = await TritonBackend.connect(server.grpc_url)
    requests = [_request(k, adapter_ids[k % NUM_ADAPTERS]) for k in range(NUM_REQUESTS)]
    answers = await asyncio.gather(*(collect(storming, each) for each in requests))
    counts = storming.stats.lora
    await storming.aclose()
    wrong = [
        request.id
        for request, (text, _) in zip(requests, answers, strict=True)
        if text != alone[request.adapter_id or 0]
    ]
    assert wrong == []
    assert storming.stats.num_failed == 0
    num_tokens = storming.stats.num_output_tokens
    after = await _settled(server, before["generated_tokens_total"] + num_tokens)
    num_evictions = after["lora_evictions_total"] - before["lora_evictions_total"]
    num_resends = counts.num_weight_sends - NUM_ADAPTERS
    assert num_evictions >= NUM_ADAPTERS - NUM_SLOTS
    assert num_resends <= num_evictions + 8


async def test_weights_go_once_while_the_adapter_stays(
    backend: TritonBackend, adapter_ids: tuple[int, ...]
) -> None:
    first, second, third = adapter_ids[:3]
    for each in (first, first, second, first, second):
        await collect(backend, _request(0, each))
    assert backend.stats.lora.num_weight_sends == 2
    await collect(backend, _request(0, third))  # evicts the first, which was idle for longer
    await collect(backend, _request(0, second))
    assert (backend.stats.lora.num_weight_sends, backend.stats.lora.num_misses) == (3, 0)
    await collect(backend, _request(0, first))
    assert (backend.stats.lora.num_weight_sends, backend.stats.lora.num_misses) == (4, 1)


async def test_two_clients_that_share_the_cache_both_get_through(
    server: ServerInfo, backend: TritonBackend, adapter_ids: tuple[int, ...]
) -> None:
    other = await TritonBackend.connect(server.grpc_url)
    clients = (backend, other)
    requests = [_request(k, adapter_ids[k % NUM_ADAPTERS], 24) for k in range(32)]
    answers = await asyncio.gather(
        *(collect(clients[k % 2], each) for k, each in enumerate(requests))
    )
    await other.aclose()
    assert {last.finish_reason for _, last in answers} <= {"length", "stop"}


async def test_warm_up_fills_the_cache(
    server: ServerInfo, backend: TritonBackend, adapter_ids: tuple[int, ...]
) -> None:
    errors = await backend.warm_up(adapter_ids)
    assert errors == dict.fromkeys(adapter_ids)
    assert _metrics(server)["lora_slots used"] == NUM_SLOTS


async def test_adapter_that_was_never_built_is_refused(backend: TritonBackend) -> None:
    with pytest.raises(BackendRejected, match="LoRA task 12345 not found in cache"):
        await collect(backend, _request(0, 12345))
