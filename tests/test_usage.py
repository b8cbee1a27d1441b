"""What a query used of the engines, as its Answer reports it."""

from __future__ import annotations

import asyncio

from path_parts import DIAMOND, make_llm, node_reply, plan_reply

from compllm.backend import Chunk
from compllm.errors import BackendUnavailable
from compllm.plan import direct_plan
from compllm.testing import Reply, ScriptedBackend
from compllm.types import Query, QueryUsage, Usage
from compllm.usage import UsageCounter

IRON, NEON = "What is the atomic number of iron?", "What is the atomic number of neon?"
TWO = (f"1 | {IRON}\n", f"2 | {NEON}")
OF_PLAN, OF_NODE, OF_ANSWER = Usage(30, 20), Usage(10, 1), Usage(7, 2)
ANSWER = Reply(("iron ", "neon"), contains=f"- {IRON} 26\n- {NEON} 10", usage=OF_ANSWER)


async def usage_of(*replies: Reply, **overrides: object) -> QueryUsage:
    async with make_llm(ScriptedBackend(*replies), **overrides) as llm:
        return (await llm.ask("Iron and neon?")).usage


def test_tokens_of_a_request_that_was_left_count() -> None:
    counter = UsageCounter()
    counter.request().add(Chunk("x ", 1))
    assert counter.total() == QueryUsage(num_requests=1, num_output_tokens=1)


async def test_plan_nodes_and_answer_are_summed() -> None:
    usage = await usage_of(
        plan_reply(*TWO, usage=OF_PLAN),
        ANSWER,
        node_reply(IRON, "26", usage=OF_NODE),
        node_reply(NEON, "10", usage=OF_NODE),
    )
    # The scripted backend counts words as tokens.
    num_words = len("".join(TWO).split()) + 1 + 1 + 2
    assert usage == QueryUsage(4, 30 + 10 + 10 + 7, num_words, OF_PLAN, OF_ANSWER)


async def test_an_attempt_that_failed_is_a_request() -> None:
    usage = await usage_of(
        plan_reply(*TWO, usage=OF_PLAN),
        ANSWER,
        node_reply(IRON, error=BackendUnavailable("away"), times=1),
        node_reply(IRON, "26", usage=OF_NODE),
        node_reply(NEON, "10", usage=OF_NODE),
    )
    assert (usage.num_requests, usage.num_input_tokens) == (5, 57)


async def test_an_answer_that_no_model_wrote_used_nothing() -> None:
    usage = await usage_of(
        plan_reply(*DIAMOND),
        node_reply(IRON, "26"),
        node_reply(NEON, "10"),
        Reply("36", contains="user\nWhat is 26 plus"),
    )
    assert usage.num_requests == 4
    assert usage.answer is None


async def test_a_plan_without_a_generator_used_nothing() -> None:
    async with make_llm(ScriptedBackend(node_reply(IRON, "26"))) as llm:
        usage = (await llm.ask(IRON, plan=direct_plan(IRON))).usage
    assert (usage.num_requests, usage.plan) == (1, None)


async def test_a_generator_that_failed_is_a_request() -> None:
    usage = await usage_of(
        plan_reply("1 | a?\n", error=BackendUnavailable("away")),
        node_reply("Iron and neon?", "both"),
        node_reply("a?", "b"),
    )
    assert usage.plan is None
    assert usage.num_output_tokens >= 3 + 1  # those of its first line, and the answer


async def test_a_shared_response_counts_for_the_query_that_asked_first() -> None:
    gate = asyncio.Event()
    backend = ScriptedBackend(
        plan_reply(f"1 | {IRON}"), node_reply(IRON, "26", gate=gate, usage=OF_NODE)
    )
    async with make_llm(backend) as llm:
        runs = [asyncio.create_task(llm.ask(Query("Iron?", id))) for id in ("a", "b")]
        for _ in range(200):  # turns of the loop: all that can go on has done so
            await asyncio.sleep(0)
        assert llm.stats().sharing.num_joined == 1
        gate.set()
        usages = sorted([(await run).usage.num_requests for run in runs])
    assert usages == [1, 2]  # the plan of each, and one node
