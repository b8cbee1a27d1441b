"""Smoke runs of the scheduler benchmark and of the report all benchmarks end with."""

from __future__ import annotations

import argparse
import json
import random

import pytest
from benchmarks import report
from benchmarks.path import bench_scheduler, dispatch_latency
from benchmarks.path.workloads import random_dag

from compllm.types import NodeResult, Plan, SubQuery


def test_a_quick_run_ends_stdout_with_the_json_it_saves(tmp_path, capsys):
    bench_scheduler.main(["--quick", "--out", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    data = json.loads(lines[-1])
    assert json.loads((tmp_path / "bench_scheduler.json").read_text()) == data
    graph, queue, slots = data["tables"].values()
    assert {row["library"] for row in graph} == {*bench_scheduler.LIBRARIES}
    assert {row["live_queries"] for row in queue} == {200}
    assert {row["face"] for row in slots} == {"Admission", "asyncio.Semaphore", "nothing"}
    assert data["hardware"]["num_cores"] >= 1
    assert data["arguments"] == {"part": None, "seed": 0, "quick": True}


@pytest.mark.parametrize("name", bench_scheduler.LIBRARIES)
def test_every_library_runs_the_same_graph_to_its_end(name):
    parents = random_dag(50, random.Random(1))
    ready, done = bench_scheduler.LIBRARIES[name](parents)
    waiting, seen = list(ready), set()
    while waiting:
        node = waiting.pop()
        assert set(parents[node]) <= seen
        seen.add(node)
        waiting.extend(done(node))
    assert seen == set(range(50))


def test_the_same_seed_makes_the_same_graph():
    graphs = [random_dag(20, random.Random(seed)) for seed in (3, 3, 4)]
    assert graphs[0] == graphs[1] != graphs[2]


def test_percentiles_are_values_that_were_measured():
    assert report.percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p95": 3.0, "p99": 3.0}
    assert report.percentiles(range(1, 101)) == {"p50": 50, "p95": 95, "p99": 99}
    with pytest.raises(ValueError, match="no values"):
        report.percentiles([])


def test_a_quick_run_never_replaces_the_results_of_a_real_one(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    arguments = argparse.Namespace(quick=True, out=tmp_path, seed=0)
    made = report.Report("nothing", arguments)
    made.add("a table", cell=1.5, other=None)
    made.finish()
    assert not list(tmp_path.iterdir())
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["name"] == "nothing"


def test_a_result_names_files_without_the_folders_of_whoever_ran_it(tmp_path):
    arguments = argparse.Namespace(
        graphs=[f"break={tmp_path}/b.jsonl"], data=tmp_path / "sets", url="host:8001", limit=3
    )
    told = report.Report("told", arguments).data()["arguments"]
    assert told == {"graphs": ["break=b.jsonl"], "data": "sets", "url": "host:8001", "limit": 3}


def test_a_plot_is_saved_beside_the_results(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    made = report.Report("drawn", argparse.Namespace(quick=False, out=tmp_path, seed=0))
    made.add("a table", x=1)
    made.finish(lambda axes, tables: axes.plot([row["x"] for row in tables["a table"]]))
    assert {path.name for path in tmp_path.iterdir()} == {"drawn.json", "drawn.png"}


def test_versions_name_what_is_absent():
    assert report.versions(["no-such-package"])["no-such-package"] == "absent"


def test_a_child_waited_from_the_end_of_its_last_parent():
    plan = Plan((SubQuery(1, "a"), SubQuery(2, "b"), SubQuery(3, "c", (1, 2))))
    nodes = [
        NodeResult(1, "base", "done", end_s=1.0),
        NodeResult(2, "base", "done", end_s=2.0),
        NodeResult(3, "base", "done", start_s=2.5, end_s=3.0),
    ]
    assert dispatch_latency.gaps_ms(plan, nodes) == [500.0]
    failed = [*nodes[:1], NodeResult(2, "base", "failed", end_s=2.0), *nodes[2:]]
    assert dispatch_latency.gaps_ms(plan, failed) == []


def test_percentiles_of_a_handover_are_of_all_children_that_are_counted():
    """`children` was of all rounds, `p99_ms` the median of theirs: which did not see a slow one."""
    calm = [1.0] * 10
    row = dispatch_latency.spread([calm, calm, [*calm[:8], 5.0, 7.0]])
    assert (row["rounds"], row["children"]) == (3, 30)
    assert (row["p50_ms"], row["p95_ms"], row["p99_ms"]) == (1.0, 5.0, 7.0)
    assert (row["p99_median_of_rounds_ms"], row["p99_worst_round_ms"]) == (1.0, 7.0)
    assert row["max_ms"] == 7.0


async def test_handover_is_measured_on_the_scripted_backend(tmp_path):
    arguments = argparse.Namespace(quick=True, out=tmp_path, seed=0)
    made = report.Report("handover", arguments)
    await dispatch_latency.bench(made, arguments, scripted=dispatch_latency.scripted())
    rows = made.tables[dispatch_latency.TABLE]
    assert [row["live_queries"] for row in rows] == [1, 4]
    assert all(row["children"] > 0 and row["failed_nodes"] == 0 for row in rows)
