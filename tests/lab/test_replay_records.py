import asyncio
import json
from dataclasses import replace

import pytest
from replay_parts import GRAPH, PROFILE, USAGE, plan_lines, replay_llm, scripted

from compllm.errors import BackendError, BackendRejected
from compllm.lab.explain.record import run_of
from compllm.lab.replay.drive import Ran, ReplaySettings, replay
from compllm.lab.replay.graphs import ReplayGraph
from compllm.lab.replay.policies import POLICIES, PolicyName
from compllm.lab.replay.records import dispatch_latencies_ms, loads_of, make_record, summarise
from compllm.testing import Reply, ScriptedBackend
from compllm.types import ANSWER_NODE, PLAN_NODE

GRAPHS = [ReplayGraph(f"g{number}", GRAPH.question, GRAPH.plan) for number in range(4)]
NONE = ReplaySettings(overhead="none")
SET = asyncio.Event()
SET.set()


async def ran(
    settings: ReplaySettings, backend: ScriptedBackend | None = None, graphs: int = 1
) -> list[Ran]:
    found: list[Ran] = []
    async with replay_llm(backend or scripted(), settings) as llm:
        await replay(llm, GRAPHS[:graphs], settings, found.append)
    return found


def summary_of(found: list[Ran], settings: ReplaySettings) -> dict[str, object]:
    records = [make_record(each, settings, PROFILE) for each in found]
    return summarise(
        records, settings, num_graphs=len(found), wall_s=1.0, profile=PROFILE, counters={"x": 1}
    )


async def test_a_record_has_times_bounds_and_nodes() -> None:
    (one,) = await ran(NONE)
    record = make_record(one, NONE, PROFILE)
    assert (record["id"], record["num_nodes"], record["depth"]) == ("g0", 4, 3)
    assert record["structural_speedup"] == pytest.approx(4 / 3, abs=1e-3)
    assert 1 <= record["ideal_speedup"] <= record["structural_speedup"]
    assert record["reached_of_bound"] == pytest.approx(
        record["ideal_ms"] / record["total_ms"], rel=1e-3
    )
    assert record["sequential_is"] == "estimated"
    assert [node["id"] for node in record["nodes"]] == [1, 2, 3, 4]
    assert len(record["handover_ms"]) == 2
    assert "plan_ms" not in record
    json.dumps(record, allow_nan=False)


async def test_the_sequential_policy_measures_what_others_estimate() -> None:
    settings = replace(NONE, policy="sequential")
    (one,) = await ran(settings)
    record = make_record(one, settings, PROFILE)
    assert record["sequential_is"] == "measured"
    assert record["sequential_ms"] == record["total_ms"]
    assert record["reached_speedup"] == 1.0


async def test_plan_and_answer_are_loads_of_their_own() -> None:
    (one,) = await ran(ReplaySettings())
    loads = loads_of(one, tokens_per_block=32)
    assert set(loads) == {PLAN_NODE, 1, 2, 3, 4, ANSWER_NODE}
    assert loads[ANSWER_NODE].parents == (PLAN_NODE, 4)
    assert loads[1].num_plan_tokens < loads[4].num_plan_tokens <= loads[PLAN_NODE].num_new_tokens
    record = make_record(one, ReplaySettings(), PROFILE)
    assert record["plan_ms"] > 0
    assert "reached_of_structural" not in record  # that bound is of the nodes alone


async def test_what_the_cache_had_needs_no_prefill() -> None:
    usage = replace(USAGE, num_input_tokens=70, kv_reused_blocks=2)
    node = Reply("x", match=lambda request: request.id.endswith("-1-0"), usage=usage)
    (one,) = await ran(NONE, scripted(node))
    assert loads_of(one, tokens_per_block=32)[1].num_prompt_tokens == 6


async def test_a_failed_graph_has_an_error_and_no_bound() -> None:
    refused = Reply(error=BackendRejected("no"), is_guided=False)
    (one,) = await ran(NONE, ScriptedBackend(refused))
    record = make_record(one, NONE, PROFILE)
    assert "no" in record["error"]
    assert "ideal_ms" not in record
    assert summary_of([one], NONE)["num_failed"] == 1


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("written", [(), plan_lines()[:3]])
async def test_a_generator_that_fails_fails_the_graph(
    policy: PolicyName, written: tuple[str, ...]
) -> None:
    plan = Reply(written, error=BackendError("away"), is_guided=True)
    whole = Reply("x", match=lambda request: request.id.endswith("-1-0"), usage=USAGE)
    (one,) = await ran(ReplaySettings(policy), scripted(whole, plan=plan))
    assert one.answer is None
    assert one.error == "the generator did not write the plan: away"


async def test_a_handover_does_not_count_the_wait_for_the_childs_line() -> None:
    gate = asyncio.Event()
    # The child's line is the last; its parents end long before it is written.
    plan = Reply(plan_lines(), is_guided=True, usage=USAGE, piece_gates=(*[SET] * 3, gate))
    backend = scripted(plan=plan)
    run = asyncio.create_task(ran(ReplaySettings(), backend))
    await backend.wait_for("third?")
    for _ in range(50):  # turns of the loop: all that can go on has done so
        await asyncio.sleep(0)
    gate.set()
    (one,) = await run
    assert one.answer is not None
    fourth = make_record(one, ReplaySettings(), PROFILE)["handover_ms"][-1]
    assert fourth < dispatch_latencies_ms(one.answer)[-1]


async def test_a_record_can_be_explained() -> None:
    for settings in (NONE, ReplaySettings()):
        (one,) = await ran(settings)
        run = run_of(make_record(one, settings, PROFILE))
        assert len(run.nodes) == 4
        assert (run.plan_ms > 0) is settings.is_planned


async def test_a_summary_tells_how_it_was_over_all() -> None:
    found = await ran(NONE, graphs=4)
    summary = summary_of(found, NONE)
    assert (summary["num_graphs"], summary["num_failed"], summary["is_complete"]) == (4, 0, True)
    assert summary["throughput_qps"] == 4.0
    assert set(summary["total_ms"]) == {"mean", "p50", "p95", "p99", "max"}  # type: ignore[call-overload]
    assert summary["policy"] == "dataflow"
    assert summary["x"] == 1
    assert json.loads(json.dumps(summary, allow_nan=False))["engine_profile"]["name"] == "test"


async def test_closed_loop_holds_so_many_graphs_at_a_time() -> None:
    gate = asyncio.Event()
    settings = replace(NONE, policy="sequential", concurrency=3)
    backend = ScriptedBackend(Reply("x", usage=USAGE, gate=gate))
    run = asyncio.create_task(ran(settings, backend, graphs=4))
    await backend.wait_for("first?", 3)
    gate.set()
    assert sorted(each.index for each in await run) == [0, 1, 2, 3]
    assert backend.max_running == 3  # one request of each


async def test_open_loop_starts_graphs_when_they_arrive() -> None:
    settings = replace(NONE, rate_qps=1000.0, seed=3)
    found = await ran(settings, graphs=4)
    assert sorted(each.index for each in found) == [0, 1, 2, 3]
    assert all(each.late_s >= 0 for each in found)
    dues = [each.start_s - each.late_s for each in sorted(found, key=lambda each: each.index)]
    assert dues == sorted(dues)


async def test_one_failure_after_another_ends_the_replay() -> None:
    backend = ScriptedBackend(Reply(error=BackendRejected("no"), is_guided=False))
    found: list[Ran] = []
    graphs = [ReplayGraph(f"g{number}", "q", GRAPH.plan) for number in range(20)]
    async with replay_llm(backend, NONE) as llm:
        with pytest.raises(BackendError, match="10 graphs in a row failed, the last, g9"):
            await replay(llm, graphs, NONE, found.append)
    assert len(found) == 10
