"""Replay on a real engine behind a real tritonserver: the same tokens under every policy."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compllm.backends.triton import TritonBackend
from compllm.catalogue import Catalogue, RouterSettings
from compllm.config import load_config
from compllm.lab.replay.counters import engine_counters, read_samples
from compllm.lab.replay.drive import ReplaySettings, run_graph
from compllm.lab.replay.graphs import ReplayGraph, read_graphs
from compllm.lab.replay.policies import POLICIES
from compllm.lab.replay.runner import ReplayLLM
from compllm.lab.replay.session import ReplaySession
from compllm.lab.replay.workload import TokenLengths
from compllm.plan import format_plan
from compllm.prompts import CHATML
from compllm.server.triton_state import ServerInfo
from compllm.testing import HashingEncoder
from compllm.types import Answer, Expert

pytestmark = pytest.mark.triton

# As people wrote them (QDMR style): a chain, a fan-in, a diamond, letters that a regex knows.
GRAPHS = (
    {
        "id": "chain",
        "question": "what flights are available from denver to philadelphia",
        "steps": ["return flights", "return #1 from denver", "return #2 to philadelphia"],
        "parents": [[], [0], [1]],
    },
    {
        "id": "fan-in",
        "question": "Are more people today related to Genghis Khan than Julius Caesar?",
        "steps": ["How many kids did Caesar have?", "How many did Khan have?", "Is #2 > #1?"],
        "parents": [[], [], [0, 1]],
    },
    {
        "id": "diamond",
        "question": "What is (twice) the number of legs + of $5 coins?",
        "steps": ["legs | of an ant?", "#1 * 2", "#1 ^ 2 [x]", "#2 + #3 \\ {1}?"],
        "parents": [[], [0], [0], [1, 2]],
    },
)
NUM_TOKENS = 6


@pytest.fixture
def graphs(tmp_path: Path) -> list[ReplayGraph]:
    file = tmp_path / "graphs.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in GRAPHS))
    return read_graphs(file, load_config(environ={}).limits.plan)


@pytest.fixture
def settings() -> ReplaySettings:
    return ReplaySettings(lengths=TokenLengths(NUM_TOKENS), answer_tokens=NUM_TOKENS)


@pytest.fixture
async def llm(server: ServerInfo, task_ids: dict[str, int]) -> AsyncIterator[ReplayLLM]:
    experts = tuple(
        Expert(name, name, f"You know {name}.", adapter=name, adapter_id=task_id)
        for name, task_id in task_ids.items()
    )
    catalogue = Catalogue(
        path=Path("experts.toml"),
        base=Expert("base", "anything", "You answer."),
        template=CHATML,
        adapters=(),
        experts=experts,
        examples=(("How many legs has an ant?",), ("Which flights are there?",)),
        router=RouterSettings(0.1, HashingEncoder.id),
        out_of_domain=(),
    )
    config = load_config(overrides={"compose.policy": "always", "sharing.is_on": False}, environ={})
    backend = await TritonBackend.connect(server.grpc_url)
    async with ReplayLLM(backend, HashingEncoder(), catalogue, config) as llm:
        yield llm


async def test_every_policy_gives_the_same_tokens(
    llm: ReplayLLM, graphs: list[ReplayGraph], settings: ReplaySettings
) -> None:
    for graph in graphs:
        answers: list[Answer] = []
        for policy in POLICIES:
            work, answer = await run_graph(llm, graph, replace(settings, policy=policy), "q")
            answers.append(answer)
            counts = [node.usage.num_output_tokens for node in answer.nodes]
            assert counts == [NUM_TOKENS] * len(counts)
            assert answer.usage.answer is not None
            assert answer.usage.answer.num_output_tokens == NUM_TOKENS
            assert len(work.line_tokens) == len(graph.plan.sub_queries)
        texts = {(a.text, *(node.response for node in a.nodes)) for a in answers}
        assert len(texts) == 1
        assert len({a.routes for a in answers}) == 1
        assert {format_plan(a.plan.sub_queries) for a in answers} == {
            format_plan(graph.plan.sub_queries)
        }


async def test_a_session_measures_runs_and_counts(
    llm: ReplayLLM,
    graphs: list[ReplayGraph],
    settings: ReplaySettings,
    server: ServerInfo,
) -> None:
    settings = replace(settings, rate_qps=100.0)
    session = ReplaySession(graphs, settings, server.metrics_url, window_s=0.02)
    await session.run(llm)
    *records, last = (json.loads(line) for line in session.lines())
    summary: dict[str, Any] = last["summary"]
    assert [record["id"] for record in records] == [graph.id for graph in graphs]
    assert summary["num_failed"] == 0
    assert all(record["reached_of_bound"] > 0 for record in records)
    assert summary["engine"]["num_generated_tokens"] == sum(
        NUM_TOKENS * (record["num_nodes"] + 1) + record["num_plan_tokens"] for record in records
    )
    steps = summary["engine"]["steps_by_batch_size"]
    assert sum(steps.values()) == summary["engine"]["num_steps"]
    timed = summary["engine"]["step_times"]
    assert sum(each["num_steps"] for each in timed) == summary["engine"]["num_steps"]
    assert 0 < sum(each["total_ms"] for each in timed) <= summary["wall_ms"]
    assert summary["engine_profile"]["prefill_ms_per_token"] >= 0
    assert len(session.windows) > 1
    in_windows = [each.num_steps for window in session.windows for each in window.steps]
    assert sum(in_windows) == summary["engine"]["num_steps"]
    ends_ms = [window.end_ms for window in session.windows]
    assert ends_ms == sorted(ends_ms)


async def test_a_salt_hides_what_the_engine_has_cached(
    llm: ReplayLLM, graphs: list[ReplayGraph], settings: ReplaySettings, server: ServerInfo
) -> None:
    long = replace(graphs[0], question="flights " * 40)
    for salt, is_cached in (("1", False), ("1", True), ("2", False)):
        _, answer = await run_graph(llm, long, replace(settings, salt=salt), "q")
        of_plan = answer.usage.plan
        assert of_plan is not None
        fresh = of_plan.num_input_tokens - 32 * of_plan.kv_reused_blocks
        assert (fresh <= 32) is is_cached


def test_counters_are_differences() -> None:
    steps, total = ("compllm_engine_steps_total", "2"), ("compllm_generated_tokens_total", "")
    counted = engine_counters({total: 5.0, steps: 1.0}, {total: 8.0, steps: 4.0})
    assert counted["num_generated_tokens"] == 3
    assert counted["steps_by_batch_size"] == {"2": 3}
    assert counted["num_steps"] is None  # the server does not report it


def test_metrics_are_read_by_name_and_label(server: ServerInfo) -> None:
    samples = read_samples(server.metrics_url)
    assert samples["nv_trt_llm_kv_cache_block_metrics", "tokens_per"] == 32
