"""Profiles, workloads and loads of the simulator; the simulation itself is in test_simulator.py."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.load.replayed import spec_of

from compllm.errors import ConfigError
from compllm.lab.engine_profile import GPU_LIKE, EngineProfile, HostTimes, load_profile
from compllm.lab.replay.counters import TimedSteps
from compllm.lab.replay.graphs import ReplayGraph
from compllm.lab.replay.ideal import Load as RequestLoad
from compllm.lab.replay.workload import TokenLengths
from compllm.lab.simulate.fit import fit_profile, seen
from compllm.lab.simulate.load import (
    Outcome,
    Service,
    capacity_qps,
    engines_needed,
    gains,
    run,
    simulate,
)
from compllm.lab.simulate.workload import Load, Shape, Workload, make_workload, quarters
from compllm.types import ANSWER_NODE, PLAN_NODE, Plan, SubQuery

PROFILE = EngineProfile("test", ((0, 4.0), (1, 8.0), (4, 14.0), (8, 24.0)), 2.0, max_batch_size=16)
SERVICE = Service(PROFILE, max_in_flight=8)
PAIR = ReplayGraph("pair", "Which is more?", Plan((SubQuery(1, "How many?"), SubQuery(2, "How?"))))
CHAIN = ReplayGraph(
    "chain", "And then what is it?", Plan((SubQuery(1, "What is it?"), SubQuery(2, "And?", (1,))))
)


def workload(
    *graphs: ReplayGraph, shape: Shape | None = None, lengths: TokenLengths | None = None
) -> Workload:
    return make_workload(
        graphs or (PAIR, CHAIN), lengths or TokenLengths(8), shape or Shape(), quarters
    )


# Profiles.


def test_step_times_lie_between_the_measured_ones_and_go_on_behind_them():
    times = [PROFILE.step_time_ms(size) for size in (0, 1, 2, 4, 6, 8, 12)]
    assert times == [4.0, 8.0, 10.0, 14.0, 19.0, 24.0, 34.0]


def test_a_step_behind_the_measured_ones_is_never_shorter_than_they():
    noisy = replace(PROFILE, step_ms=((0, 4.0), (1, 9.0), (2, 8.5)))
    assert [noisy.step_time_ms(size) for size in (1, 2, 32)] == [9.0, 8.5, 8.5]


def test_a_profile_comes_back_from_its_file(tmp_path: Path):
    path = tmp_path / "profile.json"
    profile = replace(PROFILE, host=HostTimes(route_ms=3.0), note="made up")
    path.write_text(profile.to_json())
    assert load_profile(str(path)) == profile


def test_the_built_in_profile_says_that_nobody_measured_it():
    profile = load_profile("gpu-like")
    assert profile.is_hypothetical
    assert "hypothetical" in profile.note
    assert profile.step_time_ms(1) == profile.step_time_ms(8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step_ms": [[1, 8.0], [2, 9.0]]}, "rising from 0"),
        ({"step_ms": [[0, 8.0]]}, "at least two"),
        ({"step_ms": [[0, 1.0], [1, float("inf")]]}, "step_ms of 1 is inf"),
        ({"prefill_ms_per_token": -1.0}, "prefill_ms_per_token is -1.0"),
        ({"max_batch_size": 0}, "max_batch_size is 0"),
        ({"host": {"route_ms": -2}}, "route_ms is -2.0"),
        ({"host": {"rout_ms": 2}}, "rout_ms"),
        ({"speed": 1}, "'speed'"),
        ({"step_ms": 3}, "is not an engine profile"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps({**json.loads(PROFILE.to_json()), **change}))
    with pytest.raises(ConfigError, match=message):
        load_profile(str(path))


def test_a_missing_profile_names_the_built_in_ones(tmp_path: Path):
    with pytest.raises(ConfigError, match="gpu-like"):
        load_profile(str(tmp_path / "none.json"))


def test_a_step_without_any_time_is_refused():
    with pytest.raises(ConfigError, match="takes 0 ms"):
        replace(PROFILE, step_ms=((0, 0.0), (1, 0.0))).engine_model()


# Fitting.

ENGINE: dict[str, Any] = {
    "name": "bench_engine",
    "created": "then",
    "hardware": {"cpu": "some"},
    "tables": {
        "decode_ms": [{"contestant": "ours, 4 adapters", "1 requests": 8.0, "4 requests": 13.0}],
        "ttft_ms": [
            {
                "contestant": "ours, 4 adapters",
                "1 requests": 68.0,
                "4 requests": 200.0,
                "1 request, 200-token prompt": 404.0,
            }
        ],
    },
}


def written(folder: Path, *results: dict[str, Any]) -> list[Path]:
    paths = [folder / f"{number}.json" for number in range(len(results))]
    for path, result in zip(paths, results, strict=True):
        path.write_text(json.dumps(result))
    return paths


def test_a_profile_is_fitted_from_the_engines_benchmark(tmp_path: Path):
    profile = fit_profile(written(tmp_path, ENGINE))
    assert profile.step_ms == ((0, 4.0), (1, 8.0), (4, 13.0))  # 68 ms are 4 and 32 tokens of 2 ms
    assert profile.prefill_ms_per_token == 2.0
    assert not profile.is_hypothetical
    assert profile.note == "fitted from bench_engine of then"


def test_further_benchmarks_add_context_mixed_steps_and_the_handover(tmp_path: Path):
    def row(context: int, form: str, ms: float) -> dict[str, Any]:
        return {"sequences": 1, "context": context, "adapters": 4, "form": form, "ms": ms}

    forms = ("operation, fixed shape", "paged attention")
    rows = [row(64, forms[0], 8.0), row(264, forms[0], 10.0)]
    rows += [row(64, forms[1], 11.0), row(264, forms[1], 13.0)]
    decode = {"name": "bench_decode", "created": "later", "tables": {"decoding step": rows}}
    handover = [
        {"backend": "scripted", "p50_ms": 9.0},
        {"backend": "engine", "p50_ms": 0.2},
    ]
    scheduler = {
        "name": "bench_scheduler_engine",
        "created": "today",
        "tables": {"handover: ms": handover},
    }
    profile = fit_profile(written(tmp_path, decode, ENGINE, scheduler))
    assert profile.context_ms_per_token == 0.01
    assert profile.step_ms[1] == (1, pytest.approx(8.0 - 64 * 0.01))
    assert profile.mixed_ms == 3.0
    assert profile.host.handover_ms == 0.2


def test_steps_that_an_engine_counted_take_the_place_of_a_profiles():
    profile = replace(PROFILE, mixed_ms=50.0, context_ms_per_token=0.1)
    found = seen(
        profile,
        [
            TimedSteps(1, False, 100, 900.0, 0),
            TimedSteps(8, False, 3, 999.0, 0),  # hardly ever: the profile knows better
            TimedSteps(0, True, 10, 10 * 4.0 + 3.0 * 200, 200),
            TimedSteps(1, True, 20, 20 * (9.0 + 5.0) + 3.0 * 400, 400),
        ],
    )
    assert dict(found.step_ms) == {**dict(PROFILE.step_ms), 1: 9.0}
    assert found.prefill_ms_per_token == pytest.approx(3.0)
    assert found.mixed_ms == pytest.approx(5.0)
    assert found.context_ms_per_token == 0
    # Nothing but decodes: the rest is the profile's.
    assert seen(profile, []).prefill_ms_per_token == profile.prefill_ms_per_token


def test_the_committed_results_make_the_committed_profile():
    folder = Path(__file__).parents[2] / "benchmarks" / "results"
    profile = load_profile(str(folder / "engine_profile.json"))
    assert profile.step_time_ms(1) < profile.step_time_ms(8) < profile.step_time_ms(32)
    assert profile.prefill_ms_per_token > 0


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "needs a bench_engine"),
        ([{"name": "bench_routes"}], "is of 'bench_routes'"),
        ([{"tables": {}}], "no result file"),
        ([{**ENGINE, "tables": {"decode_ms": []}}], "ttft_ms"),
        ([{**ENGINE, "tables": {**ENGINE["tables"], "ttft_ms": []}}], "no contestant"),
    ],
)
def test_a_file_that_nothing_can_be_fitted_from_is_refused(
    tmp_path: Path, results: list[dict[str, Any]], message: str
):
    with pytest.raises(ConfigError, match=message):
        fit_profile(written(tmp_path, *results))


# Workloads.


def test_same_seed_same_work_closer_together():
    slow, fast = (workload().load(rate, 50) for rate in (1.0, 4.0))
    assert slow.graph_of.tolist() == fast.graph_of.tolist()
    assert slow.responses.tolist() == fast.responses.tolist()
    assert slow.arrivals_ms / 4 == pytest.approx(fast.arrivals_ms)


def test_a_load_is_a_replays():
    lengths = TokenLengths(20, 0.5, seed=3)
    load = workload(PAIR, CHAIN, lengths=lengths).load(1.0, 2)
    assert load.graph_of.tolist() == [0, 1]
    drawn = [*lengths.of(PAIR).values(), 64, *lengths.of(CHAIN).values(), 64]
    assert load.responses.tolist() == drawn


def test_every_graph_comes_equally_often():
    counts = np.bincount(workload().load(1.0, 1000).graph_of)
    assert counts.tolist() == [500, 500]


def test_all_arrive_at_once_at_an_infinite_rate():
    assert not workload().load(math.inf, 10).arrivals_ms.any()


def alone(graph: ReplayGraph, shape: Shape) -> list[tuple[int, float, float]]:
    """Node, ready and end of each request of one query."""
    work = workload(graph, shape=shape)
    traced = simulate(work, work.load(math.inf, 1), SERVICE, is_traced=True).requests
    return [(each.node, each.ready_ms, each.end_ms) for each in traced]


def test_overhead_is_a_plan_before_and_an_answer_behind():
    assert [node for node, _, _ in alone(CHAIN, Shape())] == [0, 1, 2, -1]
    assert [node for node, _, _ in alone(CHAIN, Shape(overhead="none"))] == [1, 2]
    assert [node for node, _, _ in alone(CHAIN, Shape(compose="auto"))] == [0, 1, 2]
    assert [node for node, _, _ in alone(PAIR, Shape(compose="auto"))][-1] == -1
    assert [node for node, _, _ in alone(PAIR, Shape(compose="never"))] == [0, 1, 2]


def test_schedules_differ_in_when_nodes_start():
    def starts(schedule: Any) -> dict[int, float]:
        return {node: ready for node, ready, _ in alone(PAIR, Shape(schedule=schedule))}

    dataflow, levels, sequential = map(starts, ("dataflow", "levels", "sequential"))
    assert dataflow[1] < dataflow[2]  # each when its line ends
    assert levels[1] == levels[2] > dataflow[1]  # both when the plan does
    assert sequential[1] < sequential[2]


def test_a_level_may_come_before_one_of_an_earlier_line():
    late_root = Plan((SubQuery(1, "a"), SubQuery(2, "b", (1,)), SubQuery(3, "c")))
    requests = alone(ReplayGraph("late", "q", late_root), Shape(schedule="levels"))
    ends = {node: end for node, _, end in requests}
    ready = {node: ready for node, ready, _ in requests}
    assert ready[2] >= max(ends[1], ends[3])


def test_a_replays_requests_are_simulated_as_they_were():
    loads = {
        PLAN_NODE: RequestLoad(10, 12),
        1: RequestLoad(5, 4, (), 6),
        2: RequestLoad(7, 3, (1,), 12),
        ANSWER_NODE: RequestLoad(9, 5, (2,)),
    }
    work = Workload((spec_of(loads),), (np.array([4, 3, 5], np.int32),), seed=0)
    result = simulate(work, work.load(math.inf, 1), SERVICE, is_traced=True)
    (engine,) = result.engines
    assert engine.num_prefill_tokens == 10 + 5 + 7 + 9
    assert engine.num_output_tokens == 12 + 4 + 3 + 5
    assert [each.node for each in result.requests] == [1, 0, 2, -1]


# Loads.


def test_an_outcome_adds_up():
    work = workload()
    load = work.load(0.5, 400)
    outcome = run(work, load, SERVICE)
    assert outcome.num_queries == 400
    assert 0 < outcome.utilisation <= 1
    assert outcome.ttft_ms.mean < outcome.latency_ms.mean
    assert outcome.latency_ms.p50 <= outcome.latency_ms.p95 <= outcome.latency_ms.p99
    assert outcome.throughput_qps == pytest.approx(0.5, rel=0.2)


def test_capacity_is_what_more_queries_cannot_raise():
    work = workload()
    capacity = capacity_qps(work, SERVICE, 1000)
    crowded = run(work, work.load(3 * capacity, 1000), SERVICE)
    assert crowded.throughput_qps == pytest.approx(capacity, rel=0.05)
    assert crowded.utilisation > 0.99


def test_more_engines_carry_more():
    work = workload()
    one, four = (capacity_qps(work, replace(SERVICE, num_engines=n), 2000) for n in (1, 4))
    assert four == pytest.approx(4 * one, rel=0.05)


def test_the_fewest_engines_that_fit_are_found():
    asked: list[int] = []

    def fits(count: int) -> bool:
        asked.append(count)
        return count >= 21

    assert engines_needed(fits) == 21
    assert len(asked) < 12
    assert engines_needed(lambda _: True) == 1
    assert engines_needed(lambda _: False, most=8) is None


def test_gains_are_against_fifo():
    work = workload()
    load = work.load(0.9 * capacity_qps(work, SERVICE, 1000), 1000)
    outcomes: list[Outcome] = [
        run(work, load, replace(SERVICE, policy=policy))
        for policy in ("oldest_query_first", "fifo")  # type: ignore[arg-type]
    ]
    found = gains(outcomes)
    assert list(found) == ["oldest_query_first"]
    own, fifo = (outcome.latency_ms for outcome in outcomes)
    assert found["oldest_query_first"]["p95"] == fifo.p95 / own.p95
    assert gains(outcomes[:1]) == {}


@pytest.mark.parametrize("change", [{"num_engines": 0}, {"max_in_flight": 0}])
def test_a_service_that_cannot_be_is_refused(change: dict[str, int]):
    work = workload()
    with pytest.raises(ConfigError, match="at least 1 request"):
        run(work, work.load(1.0, 1), replace(SERVICE, **change))  # type: ignore[arg-type]


def test_a_load_of_nothing_is_refused():
    empty = Load(np.array([]), np.array([], np.int32), np.array([], np.int32))
    with pytest.raises(ConfigError, match="0 queries"):
        run(workload(), empty, SERVICE)


def test_an_engine_like_a_gpu_gains_more_by_dataflow():
    graph = ReplayGraph(
        "wide", "Which is most?", Plan(tuple(SubQuery(n, f"How many {n}?") for n in range(1, 7)))
    )

    def speedup(profile: EngineProfile) -> float:
        times = [
            run(work, work.load(math.inf, 1), Service(profile)).latency_ms.mean
            for work in (
                workload(graph, shape=Shape("none", "sequential")),
                workload(graph, shape=Shape("none", "dataflow")),
            )
        ]
        return times[0] / times[1]

    assert 1.0 < speedup(PROFILE) < speedup(GPU_LIKE) < 6.0
