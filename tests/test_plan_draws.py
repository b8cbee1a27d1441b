import asyncio

import pytest

from compllm.decompose import Generator, decompose
from compllm.errors import BackendUnavailable
from compllm.plan import PlanLimits
from compllm.testing import Reply, ScriptedBackend
from compllm.types import Plan, Query, SubQuery

QUERY = Query("Why and how?", id="q")
UNSURE = Reply(("1 | Why", " not?"), log_probs=(-0.5, -1.5), times=1)


def generator(num_draws: int, timeout_s: float = 30.0) -> Generator:
    return Generator(PlanLimits(max_nodes=4), num_draws=num_draws, timeout_s=timeout_s)


async def run(backend: ScriptedBackend, writer: Generator) -> list[SubQuery | Plan]:
    return [item async for item in decompose(QUERY, backend, writer)]


async def test_a_likelier_plan_takes_the_place_of_an_unsure_one() -> None:
    likelier = Reply(("1 | Why?\n", "2 | How?"), log_probs=(-0.5, -0.6))
    backend = ScriptedBackend(UNSURE, likelier)
    first, plan = await run(backend, generator(1))
    assert first == SubQuery(1, "Why not?")
    assert plan == Plan((SubQuery(1, "Why?"), SubQuery(2, "How?")), is_drawn=True)
    assert isinstance(plan, Plan)
    assert plan.log_probs == (-0.5, -0.6)


async def test_a_plan_that_is_likely_enough_stands_without_draws() -> None:
    backend = ScriptedBackend(Reply("1 | Why?", log_probs=(-1.1,)))
    assert (await run(backend, generator(8)))[-1] == Plan((SubQuery(1, "Why?"),))
    assert len(backend.requests) == 1


async def test_an_unsure_plan_stays_where_no_draw_is_likelier() -> None:
    less = Reply("1 | How?", log_probs=(-2.5,))
    assert (await run(ScriptedBackend(UNSURE, less), generator(3)))[-1] == Plan(
        (SubQuery(1, "Why not?"),)
    )


async def test_the_greedy_plan_drawn_again_replaces_nothing() -> None:
    """By rounding it came out a little likelier, and all of its nodes were started anew."""
    again = Reply("1 | Why not?", log_probs=(-0.5, -1.4))
    assert (await run(ScriptedBackend(UNSURE, again), generator(2)))[-1] == Plan(
        (SubQuery(1, "Why not?"),)
    )


async def test_draws_have_seeds_of_their_own_and_the_models_own_distribution() -> None:
    backend = ScriptedBackend(UNSURE, Reply("1 | Why?", log_probs=(-1.0,)))
    await run(backend, generator(3))
    greedy, *draws = [each.request for each in backend.requests]
    assert [each.sampling.seed for each in draws] == [1, 2, 3]
    assert {each.sampling.temperature for each in draws} == {1.0}
    assert all(each.guide == greedy.guide for each in draws)
    assert len({each.id for each in (greedy, *draws)}) == 4


async def test_a_draw_ends_when_it_can_no_longer_be_the_likeliest() -> None:
    gate = asyncio.Event()
    gates = (gate, asyncio.Event())  # the second piece never comes
    gate.set()
    hopeless = Reply(("1 | How", "ever?"), log_probs=(-9.0, -9.0), piece_gates=gates)
    backend = ScriptedBackend(UNSURE, hopeless)
    items = await asyncio.wait_for(run(backend, generator(2)), 5.0)
    assert items[-1] == Plan((SubQuery(1, "Why not?"),))
    assert [each.outcome for each in backend.requests[1:]] == ["cancelled"] * 2


async def test_a_drawn_plan_saves_a_query_whose_first_plan_broke_a_rule() -> None:
    broken = Reply("1 <7> | Why?", log_probs=(-2.0,), times=1)
    backend = ScriptedBackend(broken, Reply("1 | Why?", log_probs=(-3.0,)))
    assert (await run(backend, generator(1)))[-1] == Plan((SubQuery(1, "Why?"),), is_drawn=True)


@pytest.mark.parametrize(
    "bad",
    [
        Reply("nonsense", log_probs=(-0.1,)),
        Reply(error=BackendUnavailable("nobody is there")),
        Reply("1 | Why?"),  # of a server without log-probabilities
    ],
)
async def test_a_draw_that_is_no_plan_is_left_out(bad: Reply) -> None:
    assert (await run(ScriptedBackend(UNSURE, bad), generator(2)))[-1] == Plan(
        (SubQuery(1, "Why not?"),)
    )


async def test_draws_end_with_the_time_of_the_generator() -> None:
    stalled = Reply("1 | How?", log_probs=(-0.1,), gate=asyncio.Event())
    backend = ScriptedBackend(UNSURE, stalled)
    items = await run(backend, generator(2, timeout_s=0.05))
    assert items[-1] == Plan((SubQuery(1, "Why not?"),))
    assert [each.outcome for each in backend.requests[1:]] == ["cancelled"] * 2


async def test_closing_the_stream_cancels_the_draws() -> None:
    first = Reply(("1 | Why?\n", "2 | How?"), log_probs=(-2.0, -2.0), times=1)
    stalled = Reply("1 | How?", log_probs=(-0.1,), gate=asyncio.Event())
    backend = ScriptedBackend(first, stalled)
    items = decompose(QUERY, backend, generator(2))
    await anext(items)
    await backend.wait_for("Why and how?", 3)
    await items.aclose()
    assert {each.outcome for each in backend.requests} == {"cancelled"}
