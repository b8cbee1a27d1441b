import asyncio

import pytest

from compllm.decompose import Generator, decompose
from compllm.errors import BackendUnavailable
from compllm.plan import PlanLimits, cut_warning
from compllm.testing import Reply, ScriptedBackend
from compllm.types import Plan, Query, SubQuery

QUERY = Query("Why and how?", id="q")
GENERATOR = Generator(PlanLimits(max_nodes=4))


async def run(*replies: Reply, generator: Generator = GENERATOR) -> list[SubQuery | Plan]:
    return [item async for item in decompose(QUERY, ScriptedBackend(*replies), generator)]


def check_fallback(items: list[SubQuery | Plan], says: str) -> None:
    plan = items[-1]
    assert isinstance(plan, Plan)
    assert plan.is_fallback
    assert plan.sub_queries == (SubQuery(1, "Why and how?"),)
    assert says in plan.reason


async def test_a_line_is_out_before_the_next_one_is_written() -> None:
    gate = asyncio.Event()
    reply = Reply(("1 | Why?\n", "2 | How?"), piece_gates=(asyncio.Event(), gate))
    reply.piece_gates[0].set()
    items = decompose(QUERY, ScriptedBackend(reply), GENERATOR)
    assert await anext(items) == SubQuery(1, "Why?")
    gate.set()
    assert await anext(items) == SubQuery(2, "How?")
    assert await anext(items) == Plan((SubQuery(1, "Why?"), SubQuery(2, "How?")))


async def test_the_plan_has_the_log_probs_of_its_tokens() -> None:
    reply = Reply(("1 | Why?\n", "2 | How?"), log_probs=(-1, -2, -3, -4, -5, -6))
    plan = (await run(reply))[-1]
    assert isinstance(plan, Plan)
    assert plan.log_probs == (-1, -2, -3, -4, -5, -6)
    assert plan == Plan(plan.sub_queries)  # the same plan, however sure its writer was


async def test_the_request_is_guided_greedy_and_streamed() -> None:
    backend = ScriptedBackend(Reply("1 | Why?"))
    _ = [item async for item in decompose(QUERY, backend, GENERATOR)]
    request = backend.requests[0].request
    assert request.guide is not None
    assert request.guide.type == "regex"
    assert request.sampling.temperature == 0
    assert request.is_streamed


async def test_a_bad_plan_becomes_the_one_node_plan_with_the_reason() -> None:
    items = await run(Reply(("1 | Why?\n", "2 <9> | How?\n")))
    assert items[0] == SubQuery(1, "Why?")
    check_fallback(items, "parent 9 is not an earlier sub-query: '2 <9> | How?'")


async def test_more_nodes_than_allowed_become_the_one_node_plan() -> None:
    items = await run(Reply("".join(f"{node} | Why {node}?\n" for node in range(1, 9))))
    check_fallback(items, "more than 4 sub-queries")


@pytest.mark.parametrize("pieces", [("4 | D?\n5",), ("4 | D?", "\n", "5")])
async def test_a_line_more_that_is_only_begun_marks_the_plan_as_cut(
    pieces: tuple[str, ...],
) -> None:
    """The rest of a long list was left out without a word."""
    plan = (await run(Reply(("1 | A?\n2 | B?\n3 | C?\n", *pieces))))[-1]
    assert isinstance(plan, Plan)
    assert [line.text for line in plan.sub_queries] == ["A?", "B?", "C?", "D?"]
    assert plan.is_cut
    assert not plan.is_fallback
    assert GENERATOR.limits.max_nodes == 4


async def test_a_plan_of_as_many_lines_as_allowed_is_whole() -> None:
    plan = (await run(Reply("1 | A?\n2 | B?\n3 | C?\n4 | D?")))[-1]
    assert isinstance(plan, Plan)
    assert not plan.is_cut


async def test_an_empty_plan_becomes_the_one_node_plan() -> None:
    check_fallback(await run(Reply("")), "empty")


async def test_a_generator_that_is_away_becomes_the_one_node_plan() -> None:
    check_fallback(await run(Reply(error=BackendUnavailable("nobody is there"))), "nobody is there")


async def test_a_generator_that_dies_in_mid_plan_becomes_the_one_node_plan() -> None:
    items = await run(Reply("1 | Why?\n", error=BackendUnavailable("the stream ended")))
    check_fallback(items, "the stream ended")


async def test_a_stalled_generator_has_its_own_time_limit_and_is_cancelled() -> None:
    backend = ScriptedBackend(Reply("1 | Why?", gate=asyncio.Event()))
    generator = Generator(PlanLimits(), timeout_s=0.01)
    items = [item async for item in decompose(QUERY, backend, generator)]
    check_fallback(items, "did not finish within 0.01 s")
    assert backend.requests[0].outcome == "cancelled"


async def test_a_line_said_again_is_left_out_and_the_join_after_it_stays() -> None:
    """A copy ended the plan: the join was lost, and nothing said so."""
    lines = ("1 | Why?\n", "2 | Why?\n", "3 | How?\n", "4 <1,2,3> | Is #1, #2 or #3 right?")
    items = await run(Reply(lines))
    kept = (
        SubQuery(1, "Why?"),
        SubQuery(2, "How?"),
        SubQuery(3, "Is #1, #1 or #2 right?", (1, 2)),
    )
    assert items == [*kept, Plan(kept, num_copies=1)]


async def test_a_generator_that_only_repeats_itself_is_stopped() -> None:
    lines = [f"{number} | {('Why?', 'How?')[number % 2]}\n" for number in range(1, 9)]
    backend = ScriptedBackend(Reply(tuple(lines)))
    generator = Generator(PlanLimits(max_nodes=16))
    items = [item async for item in decompose(QUERY, backend, generator)]
    assert items[-1] == Plan((SubQuery(1, "How?"), SubQuery(2, "Why?")), num_copies=3)
    assert backend.requests[0].outcome == "cancelled"


async def test_a_plan_of_copies_that_is_cut_tells_the_limit_that_cut_it() -> None:
    plan = (await run(Reply("1 | A?\n2 | A?\n3 | B?\n4 | C?\n5")))[-1]
    assert isinstance(plan, Plan)
    assert plan.is_cut
    assert "generator.max_nodes = 4;" in (cut_warning(plan) or "")


async def test_closing_the_stream_cancels_the_generator() -> None:
    backend = ScriptedBackend(Reply(("1 | Why?\n", "2 | How?")))
    items = decompose(QUERY, backend, GENERATOR)
    await anext(items)
    await items.aclose()
    assert backend.requests[0].outcome == "cancelled"
