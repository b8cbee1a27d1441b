"""The bound report: its numbers on literal runs, its rules on any run."""

from __future__ import annotations

import copy
import io
import itertools
import json
from typing import Any

import networkx as nx
import pytest
from explain_data import JOIN, records
from hypothesis import given
from hypothesis import strategies as st

from compllm.errors import ConfigError
from compllm.lab.explain import Report, Run, explain_run, read_run, run_of
from compllm.lab.explain.schedule import CATEGORIES, Schedule


def of(record: dict[str, Any]) -> Report:
    return explain_run(run_of(record))


def test_the_critical_path_runs_through_what_was_waited_for() -> None:
    report = of(JOIN)
    assert report.critical == (2, 3)
    assert [(segment.category, segment.owner, segment.ms) for segment in report.segments] == [
        ("plan", "plan", 140), ("route", "plan", 10),
        ("queue", 2, 1), ("prefill", 2, 30), ("decode", 2, 69),
        ("host", 3, 2), ("queue", 3, 5), ("prefill", 3, 43), ("decode", 3, 100),
        ("compose", "answer", 90),
    ]  # fmt: skip


def test_slack_is_what_a_node_could_have_lost() -> None:
    assert of(JOIN).slack_ms == {1: 90, 2: 0, 3: 0}


def test_what_would_help_most_stands_first() -> None:
    report = of(JOIN)
    totals = {what_if.category: what_if.total_ms for what_if in report.what_ifs}
    assert [what_if.category for what_if in report.what_ifs][:2] == ["decode", "plan"]
    # Node 2 would end at 181, but node 3's line may have come as late as the plan's end, at 200.
    assert totals["decode"] == 490 - (250 - 200) - 100
    # Without the planner node 2 could begin at 10; the planner's last lines bind nothing then.
    assert totals["plan"] == 490 - 140


def test_another_path_bounds_what_a_shorter_one_saves() -> None:
    record = copy.deepcopy(JOIN)
    record["nodes"][0] |= {"first_token_ms": 130, "end_ms": 240}
    (decode,) = (found for found in of(record).what_ifs if found.category == "decode")
    # Node 1 still ends at 240 when node 2, on the path, decodes in no time.
    assert decode.total_ms == 490 - 100 - 10
    assert decode.everywhere_ms == 490 - 100 - 50


def test_the_bound_is_over_the_nodes_own_times() -> None:
    report = of(JOIN)
    assert (report.sequential_ms, report.longest_path_ms) == (59 + 99 + 143, 99 + 143)
    assert report.expert_stage_ms == 299
    assert report.no_waiting_ms == 490 - 1 - 2 - 5


def test_a_line_that_came_late_is_the_planners_time() -> None:
    record = copy.deepcopy(JOIN)
    record["timings"]["plan_ms"] = 255  # the line of node 3 came after both parents had ended
    report = of(record)
    assert report.critical == (3,)
    assert report.shares["host"] == 0
    assert report.slack_ms == {1: 92, 2: 2, 3: 0}


def test_a_planner_that_ends_last_is_the_critical_path() -> None:
    record = copy.deepcopy(JOIN)
    record["timings"]["plan_ms"] = 450
    report = of(record)
    assert report.critical == ()
    assert (report.shares["plan"], report.shares["compose"]) == (450, 40)
    assert min(report.slack_ms.values()) == 50


def test_routing_of_a_given_plan_stands_before_its_first_node() -> None:
    record = copy.deepcopy(JOIN)
    record["nodes"][1]["ready_ms"] = 100
    record["timings"] |= {"plan_ms": 100.2, "route_ms": 95}
    assert (of(record).shares["plan"], of(record).shares["route"]) == (5, 95)


def test_a_replayed_stage_has_neither_planner_nor_answer() -> None:
    node = {"ready_ms": 3, "start_ms": 3, "first_token_ms": 5, "end_ms": 9, "num_output_tokens": 4}
    record = {
        "id": "g1", "num_nodes": 1, "depth": 1, "sequential_ms": 9, "total_ms": 10, "ideal_ms": 8,
        "reached_of_bound": 0.8, "ttft_ms": 5, "nodes": [{"id": 0, "parents": [], **node}],
    }  # fmt: skip
    report = of(record)
    shares = {name: ms for name, ms in report.shares.items() if ms}
    assert shares == {"host": 4, "prefill": 2, "decode": 4}
    assert report.to_dict()["recorded"]["ideal_ms"] == 8


def test_without_a_planner_no_line_is_waited_for() -> None:
    times = ("ready_ms", "start_ms", "first_token_ms", "end_ms")
    nodes = [
        {"id": 1, "parents": [], **dict(zip(times, (0, 0, 10, 30), strict=True))},
        {"id": 2, "parents": [1], **dict(zip(times, (30, 30, 50, 90), strict=True))},
    ]
    report = of({"id": "chain", "nodes": nodes, "total_ms": 90})
    totals = {what_if.category: what_if.total_ms for what_if in report.what_ifs}
    assert (totals["prefill"], totals["decode"]) == (60, 30)


def test_the_engines_own_queue_is_told_where_it_was_recorded() -> None:
    record = copy.deepcopy(JOIN)
    record["nodes"][1]["scheduled_ms"] = 161
    assert of(record).node_shares[2] == {"host": 0, "queue": 11, "prefill": 20, "decode": 69}


@given(records())
def test_shares_sum_to_the_total(record: dict[str, Any]) -> None:
    report = of(record)
    assert sum(report.shares.values()) == pytest.approx(report.run.total_ms)
    assert min(report.shares.values()) >= 0


@given(records())
def test_the_path_covers_the_time_without_gap_or_overlap(record: dict[str, Any]) -> None:
    report = of(record)
    edges = [0.0, *(segment.end_ms for segment in report.segments)]
    assert [segment.start_ms for segment in report.segments] == edges[:-1]
    assert edges[-1] == report.run.total_ms


@given(records())
def test_slack_is_zero_exactly_on_critical_paths(record: dict[str, Any]) -> None:
    report = of(record)
    assert min(report.slack_ms.values()) >= 0
    assert {id for id, ms in report.slack_ms.items() if ms == 0} == _tight_nodes(report.run)
    assert all(report.slack_ms[id] == 0 for id in report.critical)


def _tight_nodes(run: Run) -> set[int]:
    """Oracle: the nodes from which edges without any spare time lead to the answer."""
    gates_ms = Schedule(run).gates_ms
    ends_ms = {node.id: node.end_ms for node in run.nodes}
    graph: nx.DiGraph[int | str] = nx.DiGraph()
    graph.add_node("answer")
    for node in run.nodes:
        if node.end_ms == max(run.plan_ms, *(other.end_ms for other in run.nodes)):
            graph.add_edge(node.id, "answer")
        for parent in node.parents:
            if ends_ms[parent] == gates_ms[node.id]:
                graph.add_edge(parent, node.id)
    return {id for id in nx.ancestors(graph, "answer") if isinstance(id, int)}


@given(records())
def test_a_node_may_end_later_by_its_slack_and_no_more(record: dict[str, Any]) -> None:
    # Lines in time: with a planner a longer node may hide behind a line of unknown arrival.
    record["timings"]["plan_ms"] = 0.0
    report = of(record)
    for late in report.run.nodes:
        for extra_ms in (report.slack_ms[late.id], report.slack_ms[late.id] + 1):
            total_ms = _total_with_delay(report.run, late.id, extra_ms)
            allowed_ms = report.run.total_ms + max(0.0, extra_ms - report.slack_ms[late.id])
            assert total_ms == pytest.approx(allowed_ms)


def _total_with_delay(run: Run, late: int, extra_ms: float) -> float:
    """Oracle: the run again, a node longer by so much, each other step as long as measured."""
    was = {node.id: node.end_ms for node in run.nodes}
    ends: dict[int, float] = {}
    for node in run.nodes:
        old_ms = max((was[parent] for parent in node.parents), default=0.0)
        new_ms = max((ends[parent] for parent in node.parents), default=0.0)
        ends[node.id] = node.end_ms - old_ms + new_ms + (extra_ms if node.id == late else 0.0)
    return run.total_ms - run.nodes_end_ms + max(ends.values())


@given(records())
def test_nothing_taken_away_leaves_the_measured_total(record: dict[str, Any]) -> None:
    run = run_of(record)
    assert Schedule(run).total_without(()) == pytest.approx(run.total_ms)


@given(records())
def test_no_kind_saves_more_than_its_share_of_the_path(record: dict[str, Any]) -> None:
    report = of(record)
    for what_if in report.what_ifs:
        saved_ms = what_if.saved_ms(report.run)
        assert -1e-6 <= saved_ms <= report.shares[what_if.category] + 1e-6
        assert what_if.everywhere_ms <= what_if.total_ms + 1e-6
    assert {what_if.category for what_if in report.what_ifs} == set(CATEGORIES)


@given(records())
def test_everything_taken_away_leaves_nothing(record: dict[str, Any]) -> None:
    assert Schedule(run_of(record)).total_without(CATEGORIES) == pytest.approx(0)


@given(records())
def test_the_report_is_json(record: dict[str, Any]) -> None:
    value = json.loads(json.dumps(of(record).to_dict(), allow_nan=False))
    assert sum(value["where_ms"].values()) == pytest.approx(value["total_ms"], abs=0.01)


def _with(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(JOIN), **changes}


def _with_node(**changes: Any) -> dict[str, Any]:
    record = copy.deepcopy(JOIN)
    record["nodes"][2] |= changes
    return record


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (_with(nodes=[]), "'nodes' is []"),
        (_with(nodes=None), "'nodes' is missing"),
        (_with(nodes=["a"]), "nodes[0] has the id missing"),
        (_with(timings=3), "'timings' is 3"),
        (_with(nodes=[], error="no engine"), "the query failed, there is nothing to explain: no"),
        (_with(timings={}), "total_ms = missing"),
        (_with(timings={"total_ms": 10}), "a node ends at 400 ms, after the total of 10 ms"),
        (_with_node(id=True), "the id True"),
        (_with_node(id=1), "two nodes have the id 1"),
        (_with_node(parents=[7]), "node 3 has the parent 7, which is not there"),
        (_with_node(parents="1"), "node 3 has the parents '1'"),
        (_with_node(parents=[3]), "cycle: 3"),
        (_with_node(ready_ms=200), "ready_ms = 200, before its last parent's end at 250"),
        (_with_node(start_ms=251), "start_ms = 251, before ready_ms at 252"),
        (_with_node(end_ms=float("nan")), "end_ms = nan"),
        (_with_node(end_ms=-1), "end_ms = -1"),
        (_with_node(end_ms="400"), "end_ms = '400'"),
        (_with_node(end_ms=10**400), "end_ms = 1000"),
        (_with_node(num_output_tokens=-2), "num_output_tokens = -2"),
    ],
)
def test_a_damaged_record_is_refused_with_one_line(record: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_of(record)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "run.json: no record"),
        ("[1]", "no record of a query"),
        ("{", "run.json: not JSON"),
        ('{"id": 1}\n{', "line 2"),
        ("[" * 100_000, "nested too deeply"),
        ('{"summary": {}}', "no record of a query"),
    ],
)
def test_a_file_that_is_no_record_is_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"^run\.json: ") as caught:
        read_run(io.StringIO(text), "run.json")
    assert said in str(caught.value)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(
    records(), st.sampled_from(["ready_ms", "end_ms", "id", "parents", "num_output_tokens"]), _json
)
def test_any_damage_of_a_node_is_either_harmless_or_refused(
    record: dict[str, Any], key: str, value: Any
) -> None:
    record["nodes"][0][key] = value
    try:
        report = of(record)
    except ConfigError:
        return
    assert sum(report.shares.values()) == pytest.approx(report.run.total_ms)


def test_one_record_of_many_is_named_by_its_id() -> None:
    lines = [json.dumps(_with(id=id, query=id)) + "\n" for id in ("a", "b")]
    lines.append(json.dumps({"summary": {}}))
    assert read_run(lines, "out.jsonl", "b").title == "b"
    with pytest.raises(ConfigError, match=r"2 records: name one with --id, for instance 'a'"):
        read_run(lines, "out.jsonl")
    with pytest.raises(ConfigError, match=r"no record with the id 'c' among 2"):
        read_run(lines, "out.jsonl", "c")


@pytest.mark.parametrize("indent", [None, 2])
def test_one_record_may_stand_on_one_line_or_on_many(indent: int | None) -> None:
    text = json.dumps(_with(query="q?"), indent=indent)
    assert read_run(io.StringIO(f"\n{text}\n"), "run.json").title == "q?"


def test_one_record_without_end_is_refused() -> None:
    lines = itertools.chain(["{\n"], itertools.repeat(" " * 999_999 + "1\n"))
    with pytest.raises(ConfigError, match="no record of at most 4000000 characters"):
        read_run(lines, "run.json")
