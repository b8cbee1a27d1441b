"""bench_ablation without an engine: its variants, its queries, what it makes of records."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.path.ablation_tables import (
    BOUNDS,
    RATIOS,
    add_tables,
    bounded,
    is_equal_work,
    plot,
    ratios,
)
from benchmarks.path.ablation_variants import (
    ALL_ON,
    VARIANTS,
    Variant,
    neighbours,
    one_step,
    salt_of,
)
from benchmarks.path.bench_ablation import counters_of, switches_of
from benchmarks.path.bench_replay import shapes
from benchmarks.report import Report
from path_parts import CATALOGUE, settings

from compllm.lab.replay.drive import Ran, ReplaySettings, replay
from compllm.lab.replay.graphs import ReplayGraph
from compllm.lab.replay.runner import ReplayLLM
from compllm.plan import format_plan
from compllm.testing import HashingEncoder, Reply, ScriptedBackend


def switches(variant: Variant) -> dict[str, Any]:
    return {key: value for key, value in asdict(variant).items() if key != "name"}


def record(variant: str, latency_ms: float, **more: Any) -> dict[str, Any]:
    return {
        "part": "alone",
        "variant": variant,
        "round": 0,
        "id": "a",
        "latency_ms": latency_ms,
        "total_ms": latency_ms,
        "ttft_ms": 10.0,
        "ideal_ms": 90.0,
        "ideal_speedup": 1.2,
        "structural_speedup": 1.5,
        "reached_of_bound": 0.9,
        "num_plan_tokens": 12,
        "num_answer_tokens": 4,
        "node_tokens": [4, 4],
        "prompt_tokens": 50,
        "num_shared": 0,
        "reused_blocks": 0,
        "is_direct": False,
        **more,
    }


@pytest.mark.parametrize("part", VARIANTS)
def test_each_variant_differs_from_all_on_in_one_switch(part: str) -> None:
    first, *others = VARIANTS[part]  # type: ignore[index]
    assert first.name == ALL_ON.name
    for other in others:
        ours, theirs = switches(first), switches(other)
        differing = [key for key in ours if ours[key] != theirs[key]]
        assert len(differing) == 1 or other.name == "all off"
    assert len({each.name for each in VARIANTS[part]}) == len(VARIANTS[part])  # type: ignore[index]


def test_all_off_is_off_in_all() -> None:
    (off,) = [each for each in VARIANTS["load"] if each.name == "all off"]
    ours, theirs = switches(ALL_ON), switches(off)
    assert [key for key in ours if ours[key] == theirs[key]] == ["gate"]


def test_a_salt_is_of_one_run_alone() -> None:
    salts = [
        salt_of(part, variant, number)
        for part, variants in VARIANTS.items()
        for variant in variants
        for number in range(10)
    ]
    assert len(set(salts)) == len(salts)
    assert {len(salt) for salt in salts} == {3}


def test_neighbours_share_their_first_sub_queries_and_nothing_else() -> None:
    one, two, three = neighbours(shapes()[1:2], 3)  # a diamond: one root, three below
    texts = [[each.text for each in graph.plan.sub_queries] for graph in (one, two, three)]
    assert texts[0][0] == texts[1][0] != texts[2][0]
    assert not {*texts[0][1:]} & {*texts[1][1:]}
    assert len({graph.id for graph in (one, two, three)}) == 3
    assert len({graph.question for graph in (one, two, three)}) == 3


ARRIVALS = ReplaySettings(rate_qps=2000.0)


def llm_for(graphs: list[ReplayGraph], nodes: asyncio.Event | None = None) -> ReplayLLM:
    """Its generator writes these plans; its nodes end when `nodes` is set."""
    plans = [
        Reply(format_plan(each.plan.sub_queries), contains=each.question, is_guided=True)
        for each in graphs
    ]
    rest = Reply("a response", gate=nodes)
    config = settings(compose__policy="always", sharing__is_on=True)
    return ReplayLLM(ScriptedBackend(*plans, rest), HashingEncoder(), CATALOGUE, config)


async def test_pairs_arrive_together_and_at_the_same_times_for_every_variant() -> None:
    graphs = neighbours(shapes()[:2], 5)
    found: list[list[float]] = []
    for seed in (1, 1, 2):
        ran: list[Ran] = []
        async with llm_for(graphs) as llm:
            await replay(llm, graphs, replace(ARRIVALS, seed=seed), ran.append, together=2)
        assert [each.error for each in ran] == [None] * 5
        ran.sort(key=lambda each: each.index)
        found.append([round(each.start_s - each.late_s, 9) for each in ran])
    one, same, other = found
    assert one == same != other
    assert one[0] == one[1] < one[2] == one[3] < one[4]


async def test_the_two_of_a_pair_give_single_flight_something_to_join() -> None:
    graphs = neighbours(shapes()[3:4], 2)  # two roots
    end = asyncio.Event()
    ran: list[Ran] = []

    async with llm_for(graphs, end) as llm, asyncio.TaskGroup() as tasks:
        at_once = replace(ARRIVALS, rate_qps=1e9)
        tasks.create_task(replay(llm, graphs, at_once, ran.append, together=2))
        for _ in range(2_000):  # turns of the loop: all that can be asked meanwhile has been
            await asyncio.sleep(0)
        end.set()
    assert sum(node.is_shared for each in ran if each.answer for node in each.answer.nodes) == 2


async def test_what_the_switches_did_is_counted_without_the_first_pass() -> None:
    graphs = neighbours(shapes()[:1], 4)
    async with llm_for(graphs) as llm:
        llms = {ALL_ON.name: llm}
        await replay(llm, graphs[:2], ARRIVALS, lambda _: None, together=2)
        before = {ALL_ON.name: counters_of(llm)}
        nothing = switches_of("load", ALL_ON.name, llms, before)
        await replay(llm, graphs[2:3], ARRIVALS, lambda _: None, together=2)
        row = switches_of("load", ALL_ON.name, llms, before)
    assert {nothing[key] for key in ("admitted", "flights", "joined")} == {0}
    # A chain of three; its plan and its answer were admitted too.
    assert (row["flights"], row["joined"], row["admitted"]) == (3, 0, 5)


def test_a_longest_wait_of_the_first_pass_is_not_the_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits = {"waited": 3.0, "worst_wait_ms": 40.0}
    monkeypatch.setattr("benchmarks.path.bench_ablation.counters_of", lambda _: waits)
    for first_ms, told in ((0.0, 40.0), (25.0, 40.0), (40.0, None)):
        before = {"a": {"waited": 1.0, "worst_wait_ms": first_ms}}
        row = switches_of("load", "a", {"a": None}, before)  # type: ignore[dict-item]
        assert (row["waited"], row["worst_wait_ms"]) == (2.0, told)


def test_a_question_of_one_step_is_its_own_plan() -> None:
    (graph,) = one_step(["What is 2 plus 3?"])
    assert [each.text for each in graph.plan.sub_queries] == [graph.question]


def test_ratios_pair_queries_of_a_round() -> None:
    base = [record("all on", 100.0), record("all on", 50.0, round=1)]
    own = [record("levels", 120.0), record("levels", 75.0, round=1)]
    assert ratios(own, base, by_round=False) == [1.2, 1.5]


def test_ratios_of_rounds_compare_their_means() -> None:
    base = [record("all on", 100.0), record("all on", 50.0, id="b")]
    own = [record("levels", 100.0), record("levels", 200.0, id="b")]
    assert ratios(own, base, by_round=True) == [2.0]


@pytest.mark.parametrize(
    "change",
    [{"node_tokens": [4, 5]}, {"num_plan_tokens": 13}, {"num_answer_tokens": 5}, {"id": "b"}],
)
def test_other_work_is_told(change: dict[str, Any]) -> None:
    records = [record("all on", 100.0), record("levels", 120.0)]
    assert is_equal_work(records)
    assert not is_equal_work([records[0], record("levels", 120.0, **change)])


def test_the_gate_may_spare_the_plan_alone() -> None:
    records = [
        record("all on", 100.0, part="gate", num_plan_tokens=0),
        record("no gate", 150.0, part="gate"),
    ]
    assert is_equal_work(records)
    assert not is_equal_work([records[0], records[1] | {"node_tokens": [9]}])


def test_a_bound_is_of_those_who_found_nothing_filled() -> None:
    records = [record("all on", 100.0, ideal_ms=60.0), record("no gate", 120.0)]
    assert [each["ideal_ms"] for each in bounded(records)] == [90.0, 90.0]
    assert [each["reached_of_bound"] for each in bounded(records)] == [0.9, 0.75]


def test_what_needs_no_plan_has_a_bound_of_its_own() -> None:
    records = [record("all on", 100.0, ideal_ms=60.0, is_direct=True), record("no gate", 120.0)]
    assert [each["ideal_ms"] for each in bounded(records)] == [60.0, 90.0]


def test_tables_and_picture_tell_each_variant(tmp_path: Path) -> None:
    report = Report("bench_ablation", argparse.Namespace(out=tmp_path))
    failed = {"part": "alone", "variant": "levels", "round": 1, "id": "a", "error": "x"}
    records = [record("all on", 100.0), record("levels", 130.0), {**failed, "node_tokens": []}]
    add_tables(report, records)
    first, second = report.tables[RATIOS]
    assert (first["ratio"], second["ratio"]) == (1.0, 1.3)
    assert [row["bound_ms"] for row in report.tables[BOUNDS]] == [90.0, 90.0]
    assert (report.summary["num_failed"], report.summary["is_equal_work"]) == (1, False)
    axes = pytest.importorskip("matplotlib.figure").Figure().add_subplot()
    plot(axes, report.tables)
    assert len(axes.patches) == 1
