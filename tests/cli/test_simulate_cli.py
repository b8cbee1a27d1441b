"""`compllm simulate` as people call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compllm.cli.app import run
from compllm.lab.simulate import load

LINES = (
    {"id": "a", "question": "Which is more?", "steps": ["x?", "y?"], "parents": [[], []]},
    {"id": "b", "question": "And then?", "steps": ["x?", "#1?"], "parents": [[], [0]]},
)


@pytest.fixture
def graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))  # no tokenizer there: an estimate serves
    path = tmp_path / "graphs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return path


def simulate(graphs: Path, *more: str, rate: str = "2") -> int:
    profile = ("--engine-profile", "gpu-like")
    return run(["simulate", "--graphs", str(graphs), "--rate", rate, *profile, *more])


def test_every_policy_is_a_line_of_the_table(graphs: Path, capsys: pytest.CaptureFixture[str]):
    assert simulate(graphs) == 0
    printed = capsys.readouterr()
    names = [line.split()[0] for line in printed.out.splitlines()[1:]]
    assert names == ["oldest_query_first", "fifo", "deepest_first", "least_remaining_work"]
    assert "capacity_qps" in printed.err
    assert "is_hypothetical: True" in printed.err


def test_json_holds_settings_profile_and_outcomes(graphs: Path, tmp_path: Path):
    out = tmp_path / "out.json"
    options = ["--queries", "300", "--policy", "fifo", "--p95-ms", "2000", "--json", str(out)]
    assert simulate(graphs, *options) == 0
    value: dict[str, Any] = json.loads(out.read_text())
    (outcome,) = value["policies"]
    assert (outcome["policy"], outcome["num_queries"]) == ("fifo", 300)
    assert value["profile"]["is_hypothetical"]
    assert value["engines_needed"] == {"fifo": 1}
    assert value["tokens_counted_by"] == "four characters a token"
    assert value["load"] == pytest.approx(2 / value["capacity_qps"])


def test_a_timed_run_tells_queries_and_seconds_of_each_policy(
    graphs: Path, capsys: pytest.CaptureFixture[str]
):
    chosen = ["--policy", "fifo", "--policy", "deepest_first", "--queries", "50"]
    assert simulate(graphs, *chosen, "--timed", "--json", "-") == 0
    timing = json.loads(capsys.readouterr().out)["timing"]
    assert timing.pop("num_queries") == 50
    assert list(timing) == ["draw_s", "fifo_s", "deepest_first_s"]
    assert min(timing.values()) >= 0
    assert simulate(graphs, *chosen, "--timed") == 0
    assert "timing: {'num_queries': 50" in capsys.readouterr().err


def test_one_policy_is_one_simulation_of_the_load(graphs: Path, monkeypatch: pytest.MonkeyPatch):
    ran: list[tuple[str, int]] = []
    real = load.run

    def counted(workload: Any, of: load.Load, service: load.Service) -> load.Outcome:
        ran.append((service.policy, of.num_queries))
        return real(workload, of, service)

    monkeypatch.setattr(load, "run", counted)
    assert simulate(graphs, "--policy", "oldest_query_first", "--queries", "50") == 0
    # The second finds the capacity.
    assert ran == [("oldest_query_first", 50), ("oldest_query_first", 5_000)]


def test_same_seed_same_figures(graphs: Path, capsys: pytest.CaptureFixture[str]):
    def once(seed: str) -> Any:
        options = ["--token-lengths", "lognormal:20,0.5", "--seed", seed, "--queries", "200"]
        assert simulate(graphs, *options, "--json", "-") == 0
        return json.loads(capsys.readouterr().out)["policies"]

    assert once("1") == once("1") != once("2")


def test_a_profile_is_made_of_result_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    assert run(["simulate", "--fit", str(results / "bench_engine.json")]) == 0
    assert json.loads(capsys.readouterr().out)["step_ms"][0][0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine-profile", "none.json"], "gpu-like"),
        (["--rate", "0"], "--rate is 0"),
        (["--token-lengths", "lognormal:x"], "lognormal:x"),
        (["--token-lengths", "lognormal:9,1", "--tokens-per-node", "8"], "exclude each other"),
    ],
)
def test_bad_options_are_one_line_and_status_2(
    graphs: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    assert simulate(graphs, *options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err


def test_it_needs_a_load_or_something_to_fit(capsys: pytest.CaptureFixture[str]):
    assert run(["simulate"]) == 2
    assert "--graphs, --rate and --engine-profile" in capsys.readouterr().err
