"""The path on the real engine: shared sub-queries, prefixes filled ahead, limits it tells."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.path import bench_prewarm
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
WORDS = "the quick brown fox that jumps over a lazy dog and then runs home again "


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


def chain(name: str) -> str:
    """Two nodes; about 70 tokens of the second are known before the first has ended."""
    return f"1 | Who is {name}?\n2 <1> | Is {name} {WORDS * 4}?"


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


async def test_a_prefix_filled_ahead_is_found_by_the_node_and_changes_no_token(
    opened: Open,
) -> None:
    async with opened(prewarm__mode="off", compose__policy="never") as llm:
        cold = (await ask(llm, chain("Ada"))).nodes[1]
        assert llm.stats().prewarm.num_sent == 0
        later = (await ask(llm, chain("Grace"))).nodes[1]
    async with opened(prewarm__mode="on", compose__policy="never") as llm:
        warm = (await ask(llm, chain("Linus"))).nodes[1]
        stats = llm.stats().prewarm
    async with opened(prewarm__mode="off", compose__policy="never") as llm:
        again = (await ask(llm, chain("Linus"))).nodes[1]  # whole prompt cached by now
    assert (stats.num_sent, stats.num_done) == (1, 1)
    # Of a cold child no more is there than the text that its siblings of other names begin with.
    assert warm.usage.kv_reused_blocks >= 2 > later.usage.kv_reused_blocks
    assert cold.usage.kv_reused_blocks < warm.usage.kv_reused_blocks
    assert warm.response == again.response


async def test_the_aggregators_prefix_is_filled_while_leaves_decode(opened: Open) -> None:
    plan = f"1 | Who is {WORDS * 3}?\n2 | Where is {WORDS * 2}?"
    async with opened(prewarm__mode="on", compose__policy="always") as llm:
        await ask(llm, plan)
        stats = llm.stats().prewarm
    assert stats.num_done >= 1
    assert stats.num_failed == 0


def test_the_benchmark_counts_blocks_that_were_filled_ahead(
    engine_dir: Path, tmp_path: Path
) -> None:
    bench_prewarm.main(["--smoke", "--engine", str(engine_dir), "--out", str(tmp_path)])
    tables = json.loads((tmp_path / "bench_prewarm.json").read_text())["tables"]
    gained = {
        (row["reader"], row["sub_query_tokens"]): row["more_reused_blocks"]
        for row in tables[bench_prewarm.GAINED]
        if row["mode"] == "on"
    }
    assert gained[("chain", 64)] >= 1
    assert gained[("answer", 64)] >= 1
    assert {row["mode"] for row in tables[bench_prewarm.MEASURED]} == {"off", "on", "auto"}


async def test_auto_keeps_short_prompts_to_themselves(opened: Open) -> None:
    async with opened(prewarm__mode="auto") as llm:
        for _ in range(3):
            await ask(llm, "1 | Who is Ada?\n2 <1> | Is she wise?")
        stats = llm.stats().prewarm
    assert stats.num_sent == 0
    assert stats.num_short >= 2
