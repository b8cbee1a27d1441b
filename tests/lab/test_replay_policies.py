"""Which node is asked when, under each policy: orders fixed by gates, not by time."""

import asyncio
from typing import Literal

import pytest
from replay_parts import GRAPH, PLAN, USAGE, answer_of, node_reply, plan_lines, purposes, scripted

from compllm.lab.replay.drive import ReplaySettings
from compllm.lab.replay.policies import POLICIES
from compllm.lab.replay.workload import TokenLengths
from compllm.testing import Reply, ScriptedBackend
from compllm.types import Answer

PolicyName = Literal["sequential", "levels", "dataflow", "polling"]


def under(policy: str, **more: object) -> ReplaySettings:
    return ReplaySettings(policy, **more)  # type: ignore[arg-type]


async def arrived(backend: ScriptedBackend, *nodes: int) -> None:
    for node_id in nodes:
        await backend.wait_for(f"{PLAN.sub_queries[node_id - 1].text}")


def running(backend: ScriptedBackend) -> set[str]:
    return {each.request.id.split("-")[1] for each in backend.requests if each.outcome == "running"}


@pytest.mark.parametrize("policy", POLICIES)
async def test_every_policy_does_the_same_work(policy: str) -> None:
    backend = scripted()
    answer = await answer_of(backend, under(policy, lengths=TokenLengths(9)))
    assert sorted(purposes(backend)) == ["1", "2", "3", "4", "answer", "plan"]
    assert answer.plan == PLAN
    assert answer.text == "the answer"
    assert [node.response for node in answer.nodes] == [f"response {n}" for n in (1, 2, 3, 4)]
    assert not answer.is_partial
    assert {
        each.request.sampling.min_tokens
        for each in backend.requests
        if each.request.id.count("-") == 2
    } == {9}
    fourth = backend.find("fourth?")[0].text
    assert "- second? response 2" in fourth
    assert "- third? response 3" in fourth


@pytest.mark.parametrize("policy", POLICIES)
async def test_without_overhead_nobody_plans_or_composes(policy: str) -> None:
    backend = scripted()
    answer = await answer_of(backend, under(policy, overhead="none"))
    assert sorted(purposes(backend)) == ["1", "2", "3", "4"]
    assert answer.text == "response 4"
    assert answer.timings.first_token_s > 0


async def test_sequential_asks_one_after_another_when_the_plan_is_whole() -> None:
    backend = scripted()
    await answer_of(backend, under("sequential"))
    assert purposes(backend) == ["plan", "1", "2", "3", "4", "answer"]
    assert backend.max_running == 1


async def test_levels_wait_for_the_whole_level() -> None:
    first, second = asyncio.Event(), asyncio.Event()
    backend = scripted(node_reply(1, first), node_reply(2, second))
    run = asyncio.create_task(answer_of(backend, under("levels")))
    await arrived(backend, 1, 2)
    first.set()
    await backend.find("first?")[-1].ended.wait()
    await asyncio.sleep(0)
    assert not backend.find("third?")  # its parent has ended, its level has not begun
    second.set()
    await run
    assert purposes(backend) == ["plan", "1", "2", "3", "4", "answer"]


async def test_dataflow_waits_for_parents_alone() -> None:
    second, third = asyncio.Event(), asyncio.Event()
    backend = scripted(node_reply(2, second), node_reply(3, third))
    run = asyncio.create_task(answer_of(backend, under("dataflow")))
    await arrived(backend, 3)  # while its neighbour in the level above still runs
    assert running(backend) == {"2", "3"}
    second.set()
    third.set()
    await run


@pytest.mark.parametrize("policy", ["dataflow", "polling"])
async def test_a_node_starts_when_its_line_ends(policy: str) -> None:
    gates = tuple(asyncio.Event() for _ in plan_lines())
    plan = Reply(plan_lines(), is_guided=True, piece_gates=gates, usage=USAGE)
    backend = scripted(plan=plan)
    run = asyncio.create_task(answer_of(backend, under(policy)))
    gates[0].set()
    await arrived(backend, 1)
    assert "plan" in running(backend)
    for gate in gates:
        gate.set()
    await run


@pytest.mark.parametrize("policy", ["sequential", "levels"])
async def test_no_node_starts_before_the_plan_is_whole(policy: str) -> None:
    gates = tuple(asyncio.Event() for _ in plan_lines())
    plan = Reply(plan_lines(), is_guided=True, piece_gates=gates, usage=USAGE)
    backend = scripted(plan=plan)
    run = asyncio.create_task(answer_of(backend, under(policy)))
    await backend.wait_for("What is the whole?")
    for gate in gates[:-1]:
        gate.set()
    for _ in range(50):  # turns of the loop: whatever can go on has done so
        await asyncio.sleep(0)
    assert purposes(backend) == ["plan"]
    gates[-1].set()
    await run
    assert purposes(backend)[:2] == ["plan", "1"]


async def test_polling_finds_what_is_ready_at_its_next_look() -> None:
    second = asyncio.Event()
    backend = scripted(node_reply(2, second))
    run = asyncio.create_task(answer_of(backend, under("polling")))
    await arrived(backend, 3)
    second.set()
    answer: Answer = await run
    third, fourth = answer.nodes[2], answer.nodes[3]
    # It looks every 10 ms: the handover is no event.
    assert fourth.start_s >= max(third.end_s, answer.nodes[1].end_s)
    assert GRAPH.depth == 3
