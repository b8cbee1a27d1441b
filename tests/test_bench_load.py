"""bench_load: its simulated part as a whole, and what the real part makes of its rows; that part
itself needs a server and minutes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from benchmarks import bench_load
from benchmarks.report import Report

LINES = (
    {"id": "a", "question": "Which is more?", "steps": ["x?", "y?"], "parents": [[], []]},
    {"id": "b", "question": "And then?", "steps": ["x?", "#1?"], "parents": [[], [0]]},
)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    graphs = tmp_path / "graphs.jsonl"
    graphs.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return ["--graphs", str(graphs), "--smoke", "--out", str(tmp_path)]


def test_simulated_part_saves_a_row_for_every_policy(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    bench_load.main([*arguments, "--part", "simulated", "--profile", "gpu-like"])
    saved = json.loads((tmp_path / "load_simulated.json").read_text())
    rows = saved["tables"]["simulated"]
    assert {row["policy"] for row in rows} == set(bench_load.POLICIES)
    assert all(row["engine"].endswith("(hypothetical)") for row in rows)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == saved


def rows() -> Report:
    report = Report("bench_load", argparse.Namespace(out=Path()))
    for policy, ms in (("fifo", 300.0), ("oldest_query_first", 200.0)):
        cells = {f"{kind}{key}_ms": ms for kind in ("", "simulated_") for key in ("p95", "p99")}
        report.add("load", load=0.9, policy=policy, **cells)
    return report


def test_gains_are_fifos_latency_over_the_policys():
    report = rows()
    bench_load._add_gains(report, 0.9)
    gain = report.summary["p95_gain of oldest_query_first at 90%"]
    assert gain == {"real": 1.5, "simulated": 1.5}


def test_plot_draws_what_ran_and_what_was_simulated():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.add_subplot()
    bench_load.plot(axes, rows().tables)
    assert len(axes.get_lines()) == 4
