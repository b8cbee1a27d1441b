"""A stage decides which node starts when; the path does everything else."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest
from path_parts import DIAMOND, make_llm, node_reply, plan_reply

from compllm.errors import BackendUnavailable
from compllm.execute import Execution
from compllm.lab.replay.policies import STAGES
from compllm.plan import parse_plan
from compllm.stage import Lines
from compllm.testing import Reply, ScriptedBackend
from compllm.types import AnswerFinished, NodeStarted, SubQueryPlanned

IRON, NEON = "What is the atomic number of iron?", "What is the atomic number of neon?"
NODES = (
    node_reply(IRON, "26"),
    node_reply(NEON, "10"),
    Reply("36", contains="user\nWhat is 26 plus"),
)


async def one_by_one(lines: Lines, execution: Execution) -> None:
    async for line, route in lines:
        execution.add(line, route)
        await execution.ended(line.id)
        assert execution.has_ended(line.id)
        assert execution.is_idle


async def test_a_stage_of_ones_own_runs_the_path() -> None:
    backend = ScriptedBackend(plan_reply(*DIAMOND), *NODES)
    async with make_llm(backend) as llm:
        answer = await llm.ask("Iron plus neon?", stage=one_by_one)
    assert (answer.text, answer.is_partial) == ("36", False)
    starts = [node.start_s for node in answer.nodes]
    ends = [node.end_s for node in answer.nodes]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))


async def test_a_line_is_reported_before_its_stage_has_it() -> None:
    backend = ScriptedBackend(*NODES)
    plan = parse_plan("".join(DIAMOND))
    async with (
        make_llm(backend) as llm,
        aclosing(llm.stream("Iron plus neon?", plan=plan, stage=one_by_one)) as events,
    ):
        kinds = [event async for event in events]
    planned = [e.sub_query.id for e in kinds if isinstance(e, SubQueryPlanned)]
    started = [e.id for e in kinds if isinstance(e, NodeStarted)]
    assert planned == started == [1, 2, 3]
    assert isinstance(kinds[-1], AnswerFinished)


@pytest.mark.parametrize("policy", STAGES)
async def test_what_ends_the_lines_is_raised_as_it_is(policy: str) -> None:
    async def lines() -> Lines:
        raise BackendUnavailable("the queue is full")
        yield

    class Idle:
        is_idle = True

    with pytest.raises(BackendUnavailable, match="the queue is full"):
        await asyncio.wait_for(STAGES[policy](lines(), Idle()), 10)  # type: ignore[index,arg-type]
