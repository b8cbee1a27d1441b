"""More queries than can run at once: the others wait for their turn, or are refused early."""

from __future__ import annotations

import asyncio

import pytest
from path_parts import make_llm, node_reply, plan_reply

from compllm.errors import BackendUnavailable
from compllm.testing import ScriptedBackend

IRON = "What is the atomic number of iron?"


def gated() -> tuple[asyncio.Event, ScriptedBackend]:
    """A backend that writes plans while the event is set."""
    gate = asyncio.Event()
    plan = plan_reply(f"1 | {IRON}\n", piece_gates=(gate,))
    return gate, ScriptedBackend(plan, node_reply(IRON, "26"))


async def test_a_query_waits_for_its_turn_and_then_runs() -> None:
    gate, backend = gated()
    async with make_llm(backend, limits__max_running=1) as llm:
        queries = [asyncio.create_task(llm.ask("Iron?")) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert llm.stats().queries.num_waiting == 2
        gate.set()
        assert [answer.text for answer in await asyncio.gather(*queries)] == ["26"] * 3
        assert llm.stats().queries.num_running == 0


async def test_a_query_that_would_wait_too_long_is_refused_and_the_others_end() -> None:
    gate, backend = gated()
    async with make_llm(backend, limits__max_running=1, limits__max_wait_s=1e-9) as llm:
        gate.set()
        await llm.ask("Iron?")  # its time is what is foreseen of the next ones
        gate.clear()
        first = asyncio.create_task(llm.ask("Iron?"))
        await asyncio.sleep(0.01)
        with pytest.raises(BackendUnavailable, match=r"^overloaded: 0 queries wait"):
            await llm.ask("Iron?")
        gate.set()
        assert (await first).text == "26"
        assert llm.stats().queries.num_refused == 1
