"""How long a ready sub-query waits for the runtime: child start minus last parent's end.

The part `engine` of bench_scheduler: live queries keep the real engine decoding while children
start; the scripted backend, which answers at once, runs beside it as the floor.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.report import Report, Row, percentiles

if TYPE_CHECKING:
    from compllm.pipeline import CompLLM
    from compllm.types import NodeResult, Plan

# The name of the table in result files, where lab/simulate/fit.py finds it.
TABLE = "handover: ms from the last parent's end to the child's start"

# Parents by node: what a plan may look like.
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "chain": ((), (1,), (2,), (3,), (4,), (5,)),
    "diamond": ((), (1,), (1,), (1,), (2, 3, 4)),
    "fan in": ((), (), (), (), (1, 2, 3, 4)),
}
QUESTIONS = (
    "What is the atomic number of iron?",
    "Which gas do plants take in?",
    "What is 12 times 7?",
    "Which organ pumps blood?",
    "What is the chemical symbol of gold?",
    "How many sides has a hexagon?",
)
MAX_NODE_TOKENS = 16


def make_plan(shape: str, rng: random.Random) -> Plan:
    from compllm.types import Plan, SubQuery

    return Plan(
        tuple(
            SubQuery(node, rng.choice(QUESTIONS), parents)
            for node, parents in enumerate(SHAPES[shape], start=1)
        )
    )


def gaps_ms(plan: Plan, nodes: Sequence[NodeResult]) -> list[float]:
    """One value for each node that has parents, all of them and itself done."""
    by_id = {node.id: node for node in nodes if node.status == "done"}
    return [
        (by_id[sub_query.id].start_s - max(by_id[p].end_s for p in sub_query.parents)) * 1e3
        for sub_query in plan.sub_queries
        if sub_query.parents and by_id.keys() >= {sub_query.id, *sub_query.parents}
    ]


async def measure(
    llm: CompLLM, num_live: int, num_queries: int, rng: random.Random
) -> tuple[list[float], int]:
    """Gaps of `num_queries` queries, `num_live` of them at a time, and how many nodes were not
    done."""
    plans = iter([make_plan(rng.choice([*SHAPES]), rng) for _ in range(num_queries)])
    gaps: list[float] = []
    num_failed = 0

    async def ask_one_after_another() -> None:
        nonlocal num_failed
        for plan in plans:
            answer = await llm.ask("What do these facts tell?", plan=plan)
            gaps.extend(gaps_ms(plan, answer.nodes))
            num_failed += sum(node.status != "done" for node in answer.nodes)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(num_live):
            tasks.create_task(ask_one_after_another())
    return gaps, num_failed


async def bench(report: Report, arguments: argparse.Namespace, **backends: CompLLM) -> None:
    from compllm.gc_freeze import freeze_startup_objects

    num_queries = 4 if arguments.quick else 40
    num_rounds = 1 if arguments.quick else 5
    for name, llm in backends.items():
        async with llm:
            freeze_startup_objects()  # as `compllm` and its Triton models do
            await measure(llm, 1, 2, random.Random(arguments.seed))
            rounds: dict[int, list[tuple[list[float], int]]] = {}
            # Other users of the machine stop this process for tens of ms now and then: that is in
            # `max_ms` and in some round's p99, hardly in the median of the rounds'.
            for _ in range(num_rounds):
                for num_live in (1, 4) if arguments.quick else (1, 4, 8):
                    rng = random.Random(arguments.seed)
                    found = await measure(llm, num_live, num_queries, rng)
                    rounds.setdefault(num_live, []).append(found)
            for num_live, each in rounds.items():
                report.add(
                    TABLE,
                    backend=name,
                    live_queries=num_live,
                    **spread([gaps for gaps, _ in each]),
                    failed_nodes=sum(num_failed for _, num_failed in each),
                )


def spread(rounds: Sequence[Sequence[float]]) -> Row:
    """Of all rounds' gaps together, and of the rounds' own p99: one slow moment is in one round."""
    gaps = [ms for each in rounds for ms in each]
    p99s = [percentiles(each)["p99"] for each in rounds]
    cells: dict[str, float] = {
        **{f"{key}_ms": ms for key, ms in percentiles(gaps).items()},
        "p99_median_of_rounds_ms": statistics.median(p99s),
        "p99_worst_round_ms": max(p99s),
        "max_ms": max(gaps),
    }
    return {
        "rounds": len(rounds),
        "children": len(gaps),
        **{key: round(ms, 3) for key, ms in cells.items()},
    }


async def connect(url: str) -> CompLLM:
    """To this server. The answer is not measured, so none is composed."""
    from compllm.config import load_config
    from compllm.pipeline import CompLLM

    return await CompLLM.connect(load_config(overrides={**_settings(), "server.url": url}))


def scripted() -> CompLLM:
    from compllm.catalogue import RouterSettings, load_catalogue
    from compllm.config import load_config
    from compllm.pipeline import CompLLM
    from compllm.testing import HashingEncoder, Reply, ScriptedBackend

    config = load_config(overrides=_settings(), environ={})
    # Which expert answers is of no interest here; the router only has to accept the encoder.
    router = RouterSettings(0.5, HashingEncoder.id)
    catalogue = replace(load_catalogue(), router=router)
    return CompLLM(ScriptedBackend(Reply("a short response")), HashingEncoder(), catalogue, config)


def _settings() -> dict[str, object]:
    return {
        "compose.policy": "never",
        "limits.max_node_tokens": MAX_NODE_TOKENS,
        "sharing.is_on": False,  # the plans repeat few questions, and each must run
    }
