import asyncio
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from path_parts import BASE, CHEMISTRY, MATHEMATICS, node_reply

from compllm.errors import BackendRejected, BackendUnavailable, CompllmError
from compllm.execute import Engine, Execution, LiveQuery, NodeSettings
from compllm.graph import QueryGraph
from compllm.plan import parse_plan
from compllm.scheduling.admission import Admission
from compllm.scheduling.single_flight import SingleFlight
from compllm.testing import Reply, ScriptedBackend
from compllm.types import Event, NodeFinished, NodeResult, NodeStarted, Route, SubQuery, Usage

EXPERTS = {expert.name: expert for expert in (BASE, CHEMISTRY, MATHEMATICS)}
TO_CHEMISTRY = Route("chemistry", 0.9, is_fallback=False)


class Setting:
    """An execution over a scripted backend, and what it emitted."""

    def __init__(self, *replies: Reply, limit: int = 64, timeout_s: float = 60.0) -> None:
        self.backend = ScriptedBackend(*replies)
        self.events: list[Event] = []
        nodes = NodeSettings(timeout_s=timeout_s, retry_wait_s=0)
        admission = Admission({"tensorrt_llm": limit})
        self.engine = Engine(
            self.backend,
            admission,
            SingleFlight(self.backend),
            EXPERTS,
            BASE,
            nodes,
        )

    def open(self) -> Execution:
        live = LiveQuery("q", 0, asyncio.get_running_loop().time(), self.events.append)
        return Execution(self.engine, live, QueryGraph())

    async def run(self, plan: str, route: Route = TO_CHEMISTRY) -> dict[int, NodeResult]:
        async with self.open() as execution:
            for sub_query in parse_plan(plan).sub_queries:
                execution.add(sub_query, route)
        return {result.id: result for result in execution.results()}


async def test_parents_responses_are_their_childs_context() -> None:
    setting = Setting(node_reply("one?", "26"), node_reply("two?", "4"), node_reply("sum?", "30"))
    results = await setting.run("1 | one?\n2 | two?\n3 <1,2> | sum?")
    assert results[3].response == "30"
    assert "- one? 26\n- two? 4" in setting.backend.find("sum?")[0].text


async def test_a_child_starts_when_its_last_parent_ends_whatever_its_siblings_do() -> None:
    slow, parent = asyncio.Event(), asyncio.Event()
    setting = Setting(
        node_reply("slow?", "s", gate=slow),
        node_reply("parent?", "p", gate=parent),
        node_reply("child?", "c"),
    )
    run = asyncio.create_task(setting.run("1 | slow?\n2 | parent?\n3 <2> | child?"))
    await setting.backend.wait_for("parent?")
    assert not setting.backend.find("user\nchild?")
    parent.set()
    child = await setting.backend.wait_for("user\nchild?")
    await child.ended.wait()
    assert setting.backend.find("slow?")[0].outcome == "running"
    slow.set()
    await run


async def test_a_node_runs_while_the_graph_still_grows() -> None:
    setting = Setting(node_reply("one?", "1"), node_reply("two?", "2"))
    async with setting.open() as execution:
        execution.add(SubQuery(1, "one?"), TO_CHEMISTRY)
        first = await setting.backend.wait_for("one?")
        await first.ended.wait()
        execution.add(SubQuery(2, "two?", (1,)), TO_CHEMISTRY)
    assert [result.status for result in execution.results()] == ["done", "done"]


async def test_a_waiting_node_moves_up_when_a_later_line_hangs_below_it() -> None:
    """Its path was read once, when it began to wait: whatever the plan's later lines said."""
    first = asyncio.Event()
    setting = Setting(node_reply("first?", "1", gate=first), Reply("x"), limit=1)
    async with setting.open() as execution:
        execution.add(SubQuery(1, "first?"), TO_CHEMISTRY)
        await setting.backend.wait_for("first?")
        execution.add(SubQuery(2, "alone?"), TO_CHEMISTRY)
        execution.add(SubQuery(3, "parent?"), TO_CHEMISTRY)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        execution.add(SubQuery(4, "child?", (3,)), TO_CHEMISTRY)
        first.set()
    started = [event.id for event in setting.events if isinstance(event, NodeStarted)]
    assert started == [1, 3, 2, 4]


async def test_the_expert_is_asked_with_its_adapter_and_system_text() -> None:
    setting = Setting(Reply("x"))
    await setting.run("1 | one?")
    request = setting.backend.requests[0]
    assert request.request.adapter_id == CHEMISTRY.adapter_id
    assert CHEMISTRY.system in request.text
    assert not request.request.is_streamed


@pytest.mark.parametrize(
    ("errors", "asked", "status", "by"),
    [
        ([BackendUnavailable("away")], [7, 7], "done", "chemistry"),
        ([BackendUnavailable("away")] * 2, [7, 7, None], "done", "base"),
        ([BackendUnavailable("away")] * 3, [7, 7, None], "failed", "chemistry"),
        ([BackendRejected("no adapter")], [7, None], "done", "base"),
        ([BackendRejected("no adapter")] * 2, [7, None], "failed", "chemistry"),
    ],
)
async def test_a_failure_is_retried_where_safe_then_the_base_answers_then_it_is_a_value(
    errors: list[CompllmError], asked: list[int | None], status: str, by: str
) -> None:
    replies = [Reply(error=error, times=1) for error in errors]  # type: ignore[arg-type]
    setting = Setting(*replies, Reply("x"))
    result = (await setting.run("1 | one?"))[1]
    assert [each.request.adapter_id for each in setting.backend.requests] == asked
    assert (result.status, result.expert) == (status, by)
    assert (result.error is None) == (status == "done")


async def test_every_node_has_the_log_probs_of_its_tokens_shared_responses_too() -> None:
    gate = asyncio.Event()
    setting = Setting(Reply("twenty six", log_probs=(-0.5, -0.25), gate=gate))
    run = asyncio.create_task(setting.run("1 | one?\n2 | one?"))
    await setting.backend.wait_for("one?")
    gate.set()
    results = await run
    assert [result.log_probs for result in results.values()] == [(-0.5, -0.25)] * 2
    assert sum(result.is_shared for result in results.values()) == 1


async def test_an_empty_response_is_a_failure_too() -> None:
    setting = Setting(Reply("  \n", adapter_id=7), Reply("x"))
    result = (await setting.run("1 | one?"))[1]
    assert (result.response, result.expert) == ("x", "base")


async def test_a_stalled_attempt_has_its_own_time_limit_and_is_cancelled() -> None:
    setting = Setting(Reply("", adapter_id=7, gate=asyncio.Event()), Reply("x"), timeout_s=0.01)
    result = (await setting.run("1 | one?"))[1]
    assert (result.status, result.expert) == ("done", "base")
    assert setting.backend.requests[0].outcome == "cancelled"


async def test_a_child_is_told_what_is_missing_and_siblings_go_on() -> None:
    setting = Setting(
        node_reply("bad?", error=BackendRejected("no")), node_reply("good?", "g"), Reply("x")
    )
    results = await setting.run("1 | bad?\n2 | good?\n3 <1,2> | child?")
    assert [results[node].status for node in (1, 2, 3)] == ["failed", "done", "done"]
    assert "- bad? (not known)\n- good? g" in setting.backend.find("child?")[0].text


async def test_a_child_without_any_parents_response_is_skipped_down_the_line() -> None:
    setting = Setting(node_reply("bad?", error=BackendRejected("no")), Reply("x"))
    results = await setting.run("1 | bad?\n2 <1> | child?\n3 <2> | grandchild?\n4 | free?")
    assert [results[node].status for node in range(1, 5)] == [
        "failed",
        "skipped",
        "skipped",
        "done",
    ]
    assert not setting.backend.find("child?")


async def test_in_flight_requests_stay_below_the_limit() -> None:
    gate = asyncio.Event()
    setting = Setting(Reply("x", gate=gate), limit=2)
    plan = "".join(f"{node} | n{node}?\n" for node in range(1, 9))
    run = asyncio.create_task(setting.run(plan))
    await setting.backend.wait_for("?", count=2)
    gate.set()
    assert len(await run) == 8
    assert setting.backend.max_running == 2


async def test_cancelling_ends_every_request_and_marks_the_nodes() -> None:
    setting = Setting(node_reply("one?", gate=asyncio.Event()), Reply("x"))
    execution = setting.open()

    async def run() -> None:
        async with execution:
            for sub_query in parse_plan("1 | one?\n2 <1> | two?").sub_queries:
                execution.add(sub_query, TO_CHEMISTRY)

    task = asyncio.create_task(run())
    await setting.backend.wait_for("one?")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert setting.backend.requests[0].outcome == "cancelled"
    assert [result.status for result in execution.results()] == ["cancelled", "cancelled"]


async def test_a_restart_cancels_what_ran_and_runs_the_new_graph() -> None:
    setting = Setting(node_reply("old?", gate=asyncio.Event()), node_reply("new?", "n"))
    async with setting.open() as execution:
        execution.add(SubQuery(1, "old?"), TO_CHEMISTRY)
        await setting.backend.wait_for("old?")
        await execution.restart(QueryGraph())
        execution.add(SubQuery(1, "new?"), TO_CHEMISTRY)
    assert setting.backend.requests[0].outcome == "cancelled"
    assert [result.response for result in execution.results()] == ["n"]


async def test_an_error_of_the_block_itself_comes_out_as_it_is() -> None:
    setting = Setting(Reply("", gate=asyncio.Event()))

    async def run() -> None:
        async with setting.open() as execution:
            execution.add(SubQuery(1, "one?"), TO_CHEMISTRY)
            await setting.backend.wait_for("one?")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await run()
    assert setting.backend.requests[0].outcome == "cancelled"


async def test_times_and_usage_are_those_of_the_query_and_the_engine() -> None:
    setting = Setting(Reply("x", usage=Usage(9, 1, kv_reused_blocks=2)))
    results = await setting.run("1 | one?\n2 <1> | two?")
    first, second = results[1], results[2]
    assert first.usage.kv_reused_blocks == 2
    assert first.ready_s <= first.start_s <= first.first_token_s <= first.end_s
    assert first.end_s <= second.ready_s <= second.start_s


@st.composite
def dags(draw: st.DrawFn) -> tuple[SubQuery, ...]:
    count = draw(st.integers(1, 14))
    return tuple(
        SubQuery(
            node,
            f"n{node}.?",
            tuple(sorted(draw(st.sets(st.integers(1, node - 1), max_size=3)))) if node > 1 else (),
        )
        for node in range(1, count + 1)
    )


@settings(max_examples=60, deadline=None)
@given(dags(), st.randoms(use_true_random=False))
def test_any_graph_runs_in_topological_order_with_all_that_is_ready_at_once(
    plan: tuple[SubQuery, ...], random: object
) -> None:
    asyncio.run(_check_order(plan, random.choice))  # type: ignore[attr-defined]


async def _check_order(plan: tuple[SubQuery, ...], choose: Callable[[list[int]], int]) -> None:
    gates = {sub_query.id: asyncio.Event() for sub_query in plan}
    setting = Setting(
        *(node_reply(sub_query.text, "x", gate=gates[sub_query.id]) for sub_query in plan)
    )
    done: set[int] = set()
    async with setting.open() as execution:
        for sub_query in plan:
            execution.add(sub_query, TO_CHEMISTRY)
        while len(done) < len(plan):
            # Exactly the nodes whose parents are all done are running, no more and no fewer.
            able = [s.id for s in plan if s.id not in done and done.issuperset(s.parents)]
            for node in able:
                await setting.backend.wait_for(f"user\nn{node}.?")
            assert setting.backend.num_running == len(able)
            chosen = choose(able)
            gates[chosen].set()
            ended = await setting.backend.wait_for(f"user\nn{chosen}.?")
            await ended.ended.wait()
            done.add(chosen)
    started = [event.id for event in setting.events if isinstance(event, NodeStarted)]
    ended_ids = [event.result.id for event in setting.events if isinstance(event, NodeFinished)]
    assert sorted(started) == sorted(ended_ids) == [sub_query.id for sub_query in plan]
