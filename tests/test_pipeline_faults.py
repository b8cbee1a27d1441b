"""A query that meets a deadline, a fault of the engine or a cancellation."""

import asyncio

import pytest
from path_parts import (
    DIAMOND,
    IRON,
    NEON,
    NODES,
    TWO_LEAVES,
    make_llm,
    node_reply,
    plan_reply,
)

from compllm.errors import (
    BackendRejected,
    BackendUnavailable,
    DeadlineExceeded,
)
from compllm.testing import Reply, ScriptedBackend
from compllm.types import (
    NodeStarted,
    Query,
)


async def test_past_the_deadline_there_is_a_partial_answer_of_what_is_known() -> None:
    backend = ScriptedBackend(
        plan_reply(*TWO_LEAVES), node_reply(IRON, "26"), node_reply(NEON, gate=asyncio.Event())
    )
    async with make_llm(backend) as llm:
        answer = await llm.ask(Query("Iron and neon?", deadline_s=0.2))
    assert answer.text == f"{IRON} 26"
    assert answer.is_partial
    assert answer.error == "the deadline of 0.2 s is over"
    assert [node.status for node in answer.nodes] == ["done", "cancelled"]
    assert backend.num_running == 0


async def test_past_the_deadline_with_nothing_known_there_is_an_error() -> None:
    backend = ScriptedBackend(plan_reply("1 | a?", gate=asyncio.Event()))
    async with make_llm(backend) as llm:
        with pytest.raises(DeadlineExceeded):
            await llm.ask(Query("Iron?", deadline_s=0.05))
        with pytest.raises(DeadlineExceeded):
            await llm.plan(Query("Iron?", deadline_s=0.05))
    assert backend.num_running == 0


async def test_a_dead_backend_is_a_typed_error() -> None:
    backend = ScriptedBackend(Reply(error=BackendUnavailable("nobody listens at host:1")))
    async with make_llm(backend) as llm:
        with pytest.raises(BackendUnavailable, match="nobody listens"):
            await llm.ask("Iron?")


async def test_a_server_that_dies_in_mid_plan_leaves_what_was_known_by_then() -> None:
    gates = (asyncio.Event(), asyncio.Event())
    away = BackendUnavailable("gone")
    backend = ScriptedBackend(
        plan_reply(f"1 | {IRON}\n", "2 | ", piece_gates=gates, error=away),
        node_reply(IRON, "26", times=1),
        Reply(error=away),
    )
    async with make_llm(backend) as llm:
        run = asyncio.create_task(llm.ask("Iron plus neon?"))
        gates[0].set()
        await (await backend.wait_for(f"user\n{IRON}")).ended.wait()
        gates[1].set()
        answer = await run
    assert (answer.text, answer.is_partial, answer.error) == (f"{IRON} 26", True, "gone")


async def test_a_server_that_dies_in_mid_answer_leaves_a_partial_answer() -> None:
    backend = ScriptedBackend(
        plan_reply(*TWO_LEAVES),
        Reply("Iron has", contains=f"- {IRON} 26\n- {NEON} 10", error=BackendUnavailable("gone")),
        *NODES,
    )
    async with make_llm(backend) as llm:
        answer = await llm.ask("Iron and neon?")
    assert (answer.text, answer.is_partial, answer.error) == ("Iron has", True, "gone")


async def test_an_aggregator_that_fails_leaves_the_responses() -> None:
    backend = ScriptedBackend(
        plan_reply(*TWO_LEAVES),
        Reply(contains=f"- {IRON} 26\n- {NEON} 10", error=BackendRejected("no")),
        *NODES,
    )
    async with make_llm(backend) as llm:
        answer = await llm.ask("Iron and neon?")
    assert answer.text == f"{IRON} 26\n{NEON} 10"
    assert answer.is_partial


async def test_a_failed_leaf_leaves_the_nodes_above_it() -> None:
    backend = ScriptedBackend(
        plan_reply(*DIAMOND),
        *NODES[:2],
        Reply(contains="user\nWhat is 26 plus", error=BackendRejected("no")),
    )
    async with make_llm(backend) as llm:
        answer = await llm.ask("Iron plus neon?")
    assert answer.text == f"{IRON} 26\n{NEON} 10"
    assert (answer.is_partial, answer.error) == (True, "no")


async def test_closing_the_stream_cancels_everything_at_the_engine() -> None:
    backend = ScriptedBackend(
        plan_reply(f"1 | {IRON}\n", "2 | x?"), node_reply(IRON, gate=asyncio.Event())
    )
    async with make_llm(backend) as llm:
        events = llm.stream("Iron?")
        async for event in events:
            if isinstance(event, NodeStarted):
                break
        await events.aclose()
        assert backend.num_running == 0
        assert {each.outcome for each in backend.requests} <= {"cancelled", "done"}


async def test_cancelling_the_caller_passes_through() -> None:
    backend = ScriptedBackend(plan_reply("1 | a?", gate=asyncio.Event()))
    async with make_llm(backend) as llm:
        task = asyncio.create_task(llm.ask("Iron?"))
        await backend.wait_for("Iron?")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert backend.requests[0].outcome == "cancelled"
