"""The path on the real engine: shared sub-queries, and the limit that the engine reports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from path_parts import BASE, CATALOGUE, CHEMISTRY, settings

from compllm.backends.model_limits import EMBEDDED
from compllm.backends.triton import TritonBackend
from compllm.catalogue import Adapter
from compllm.pipeline import CompLLM
from compllm.plan import parse_plan
from compllm.server.triton_state import ServerInfo
from compllm.testing import HashingEncoder
from compllm.types import Answer

pytestmark = [pytest.mark.triton, pytest.mark.slow]

Open = Callable[..., AbstractAsyncContextManager[CompLLM]]


@pytest.fixture
def opened(server: ServerInfo, engine_dir: Path, task_ids: dict[str, int]) -> Open:
    """A path with these settings to the one server: one expert with an adapter, and the base."""
    expert = replace(CHEMISTRY, adapter="chemistry", adapter_id=task_ids["chemistry"])
    catalogue = replace(
        CATALOGUE,
        base=BASE,
        adapters=(Adapter("chemistry", task_ids["chemistry"], None),),
        experts=(expert,),
        examples=CATALOGUE.examples[:1],
    )

    @asynccontextmanager
    async def open_path(**overrides: object) -> AsyncIterator[CompLLM]:
        backend = await TritonBackend.connect(server.grpc_url, engine_dir)
        config = settings(limits__max_node_tokens=48, limits__max_answer_tokens=8, **overrides)
        async with CompLLM(backend, HashingEncoder(), catalogue, config) as llm:
            yield llm

    return open_path


async def ask(llm: CompLLM, plan: str) -> Answer:
    answer = await llm.ask("Why?", plan=parse_plan(plan))
    assert not answer.is_partial
    return answer


async def test_the_engine_tells_how_many_requests_it_batches(opened: Open) -> None:
    async with opened() as llm:
        await ask(llm, "1 | Who is Ada?")
        assert llm.stats().engines["tensorrt_llm"].limit == EMBEDDED
    async with opened(limits__max_in_flight=5) as llm:
        await ask(llm, "1 | Who is Ada?")
        assert llm.stats().engines["tensorrt_llm"].limit == 5


async def test_queries_that_ask_the_same_at_once_share_one_generation(opened: Open) -> None:
    plan = "1 | What is the atomic number of iron?\n2 <1> | Is #1 even?"
    async with opened(compose__policy="never", sharing__is_on=False) as llm:
        alone = await ask(llm, plan)
    async with opened(compose__policy="never") as llm:
        answers = await asyncio.gather(*(ask(llm, plan) for _ in range(4)))
        sharing = llm.stats().sharing
    assert {answer.text for answer in answers} == {alone.text}
    assert (sharing.num_flights, sharing.num_joined, sharing.num_running) == (2, 6, 0)
    assert sum(node.is_shared for answer in answers for node in answer.nodes) == 6
