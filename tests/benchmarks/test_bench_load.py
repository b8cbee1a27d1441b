"""bench_load: its simulated part as a whole, and what the real part makes of its rows; that part
itself needs a server and minutes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.load import bench_load, load_predicted
from benchmarks.load.load_simulated import read
from benchmarks.report import Report
from path_parts import CATALOGUE, settings

from compllm.cli.app import run
from compllm.lab.engine_profile import EngineProfile
from compllm.lab.replay.drive import ReplaySettings, replay
from compllm.lab.replay.runner import ReplayLLM
from compllm.lab.replay.session import ReplaySession
from compllm.lab.replay.workload import TokenLengths
from compllm.lab.simulate.load import Spread
from compllm.plan import format_plan
from compllm.testing import HashingEncoder, Reply, ScriptedBackend

LINES = (
    {"id": "a", "question": "Which is more?", "steps": ["x?", "y?"], "parents": [[], []]},
    {"id": "b", "question": "And then?", "steps": ["x?", "#1?"], "parents": [[], [0]]},
)


@pytest.fixture
def arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))  # no tokenizer there: an estimate serves
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
    assert {(row["tokens"], row["answer_tokens"]) for row in rows} == {
        ("32", 32),
        ("lognormal:32,0.8", 32),
    }
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == saved


def test_simulated_nodes_and_answers_have_the_tokens_of_the_real_part(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """They had 64 in an answer where the real ones had 32: two tables of other work."""
    seen: dict[str, int] = {}

    def ran(_graphs: object, _profile: str, given: argparse.Namespace) -> None:
        seen.update(node=given.tokens_per_node, answer=given.answer_tokens)

    monkeypatch.setattr(bench_load, "run_real", ran)
    more = ["--profile", "gpu-like", "--tokens-per-node", "6", "--answer-tokens", "5"]
    bench_load.main([*arguments, *more])
    rows = json.loads((tmp_path / "load_simulated.json").read_text())["tables"]["simulated"]
    assert {(row["tokens"], row["answer_tokens"]) for row in rows} == {
        (f"{seen['node']}", seen["answer"]),
        (f"lognormal:{seen['node']},0.8", seen["answer"]),
    }


async def test_fitted_is_what_compllm_simulate_says_with_the_file(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The named path of a forecast; the other columns know what ran."""
    fitted = EngineProfile("fitted", ((0, 1.0), (1, 10.0), (8, 20.0)), 0.5)
    around = EngineProfile("around", ((0, 1.0), (1, 30.0), (8, 60.0)), 0.5)
    (tmp_path / "profile.json").write_text(fitted.to_json())
    graphs = read(tmp_path / "graphs.jsonl")
    replayed = ReplaySettings(lengths=TokenLengths(6, seed=3), answer_tokens=5, seed=3)
    session = ReplaySession(graphs, replayed)
    plans = [
        Reply(tuple(plan.rstrip().splitlines(True)), contains=each.question, is_guided=True)
        for each in graphs
        for plan in [format_plan(each.plan.sub_queries)]
    ]
    backend = ScriptedBackend(*plans, Reply("a response"))
    config = settings(compose__policy="always", sharing__is_on=False)
    async with ReplayLLM(backend, HashingEncoder(), CATALOGUE, config) as llm:
        await replay(llm, graphs, replayed, session.ran.append)
    latencies_ms = [100.0, 300.0]
    real = Spread.of(np.array(latencies_ms))
    report = Report("bench_load", argparse.Namespace(out=tmp_path))
    bench = bench_load.Bench(graphs, replayed, None, {}, 2, report, fitted)
    seen = bench_load.Seen(latencies_ms, 0.0, 1.0, session)
    cells = load_predicted.predicted(bench, seen, 4.0, "fifo", around)

    scenario = tmp_path / "scenario.toml"
    scenario.write_text(
        'graphs = "graphs.jsonl"\nengine_profile = "profile.json"\nrate_qps = 4\nseed = 3\n'
        'policies = ["fifo"]\nmax_in_flight = 2\ntokens_per_node = 6\nanswer_tokens = 5\n'
    )
    assert run(["simulate", str(scenario), "--json", "-"]) == 0
    (forecast,) = json.loads(capsys.readouterr().out)["policies"]
    for key in ("mean", "p95"):
        ms = forecast["latency_ms"][key]
        assert cells[f"fitted_{key}_ms"] == pytest.approx(ms, abs=0.06)
        assert cells[f"fitted_{key}_error"] == pytest.approx(ms / getattr(real, key) - 1, abs=1e-4)
        assert cells[f"simulated_{key}_ms"] != cells[f"fitted_{key}_ms"]


def rows() -> Report:
    report = Report("bench_load", argparse.Namespace(out=Path()))
    for number, slowness in ((1, 1.0), (2, 3.0)):
        for policy, ms in (("fifo", 300.0), ("oldest_query_first", 200.0 * slowness)):
            cells = {f"{kind}{key}_ms": ms for kind in ("", "simulated_") for key in ("p95", "p99")}
            report.add("load", load=0.9, round=number, policy=policy, **cells)
    for policy, ms in (("fifo", 300.0), ("oldest_query_first", 250.0)):
        report.add("all rounds", load=0.9, policy=policy, p95_ms=ms, p99_ms=ms)
    return report


def test_gains_are_fifos_latency_over_the_policys():
    report = rows()
    bench_load.add_gains(report, 0.9)
    gain = report.summary["p95_gain of oldest_query_first at 90%"]
    assert gain == {"real": 1.2, "rounds": [1.5, 0.5], "simulated": 1.0}


def test_a_round_has_the_same_queries_at_other_times(tmp_path: Path):
    replayed = ReplaySettings(lengths=TokenLengths(6, seed=3), seed=3)
    report = Report("bench_load", argparse.Namespace(out=tmp_path))
    fitted = EngineProfile("fitted", ((0, 1.0), (1, 10.0)), 0.5)
    bench = bench_load.Bench([], replayed, None, {}, 2, report, fitted)
    assert bench_load.round_of(bench, 0) == bench
    other = bench_load.round_of(bench, 2)
    assert (other.settings.seed, other.settings.lengths.seed) == (5, 5)
    assert other.graphs is bench.graphs


def test_plot_draws_what_ran_and_what_was_simulated():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    axes = figure.add_subplot()
    bench_load.plot(axes, rows().tables)
    assert len(axes.get_lines()) == 4
