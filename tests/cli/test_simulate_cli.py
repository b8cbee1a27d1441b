"""`compllm simulate` as people call it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from compllm.cli.app import run
from compllm.lab.simulate import load

SCENARIOS = Path(__file__).parents[2] / "docs" / "scenarios"
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


def simulate(graphs: Path, *options: str, **keys: Any) -> int:
    """keys: of the scenario, written next to the file of graphs."""
    values = {"graphs": graphs.name, "rate_qps": 2.0, "engine_profile": "gpu-like", **keys}
    scenario = graphs.with_name("scenario.toml")
    scenario.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return run(["simulate", str(scenario), *options])


def test_every_policy_is_a_line_of_the_table(graphs: Path, capsys: pytest.CaptureFixture[str]):
    assert simulate(graphs) == 0
    printed = capsys.readouterr()
    names = [line.split()[0] for line in printed.out.splitlines()[1:]]
    assert names == ["oldest_query_first", "fifo", "deepest_first", "least_remaining_work"]
    assert "capacity_qps" in printed.err
    assert "is_hypothetical: True" in printed.err


def test_json_holds_settings_profile_and_outcomes(graphs: Path, tmp_path: Path):
    out = tmp_path / "out.json"
    keys = {"num_queries": 300, "policies": ["fifo"], "p95_ms": 2000}
    assert simulate(graphs, "--json", str(out), **keys) == 0
    value: dict[str, Any] = json.loads(out.read_text())
    (outcome,) = value["policies"]
    assert (outcome["policy"], outcome["num_queries"]) == ("fifo", 300)
    assert value["profile"]["is_hypothetical"]
    assert value["engines_needed"] == {"fifo": 1}
    assert value["tokens_counted_by"] == "four characters a token"
    assert value["load"] == pytest.approx(2 / value["capacity_qps"])


def test_a_timed_run_reports_queries_and_seconds_of_each_policy(
    graphs: Path, capsys: pytest.CaptureFixture[str]
):
    keys: dict[str, Any] = {"policies": ["fifo", "deepest_first"], "num_queries": 50}
    assert simulate(graphs, "--timed", "--json", "-", **keys) == 0
    timing = json.loads(capsys.readouterr().out)["timing"]
    assert timing.pop("num_queries") == 50
    assert list(timing) == ["draw_s", "fifo_s", "deepest_first_s"]
    assert min(timing.values()) >= 0
    assert simulate(graphs, "--timed", **keys) == 0
    assert "timing: {'num_queries': 50" in capsys.readouterr().err


def test_one_policy_is_one_simulation_of_the_load(graphs: Path, monkeypatch: pytest.MonkeyPatch):
    ran: list[tuple[str, int]] = []
    real = load.run

    def counted(workload: Any, of: load.Load, service: load.Service) -> load.Outcome:
        ran.append((service.policy, of.num_queries))
        return real(workload, of, service)

    monkeypatch.setattr(load, "run", counted)
    assert simulate(graphs, policies=["oldest_query_first"], num_queries=50) == 0
    # The second finds the capacity.
    assert ran == [("oldest_query_first", 50), ("oldest_query_first", 5_000)]


def test_same_seed_same_figures(graphs: Path, capsys: pytest.CaptureFixture[str]):
    def once(*options: str, **keys: int) -> Any:
        drawn = {"tokens_per_node": 20, "tokens_sigma": 0.5, "num_queries": 200, **keys}
        assert simulate(graphs, "--json", "-", *options, **drawn) == 0
        return json.loads(capsys.readouterr().out)["policies"]

    assert once("--seed", "1") == once(seed=1) == once("--seed", "1", seed=2) != once("--seed", "2")


def test_a_profile_is_made_of_result_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    results = Path(__file__).parents[2] / "benchmarks" / "results"
    assert run(["simulate", "--fit", str(results / "bench_engine.json")]) == 0
    assert json.loads(capsys.readouterr().out)["step_ms"][0][0] == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"engine_profile": "none.json"}, "gpu-like"),
        ({"rate_qps": 0}, "rate_qps = 0 in "),
        ({"tokens_sigma": "wide"}, "tokens_sigma = 'wide' in "),
        ({"tokens_sigma": 1, "tokens_per_node": 2000}, "with tokens_sigma it is at most 1024"),
    ],
)
def test_bad_keys_are_one_line_and_status_2(
    graphs: Path, keys: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
):
    assert simulate(graphs, **keys) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert str(graphs.parent) in printed.err


def test_it_needs_a_scenario_or_something_to_fit(capsys: pytest.CaptureFixture[str]):
    assert run(["simulate"]) == 2
    assert "name a scenario file" in capsys.readouterr().err


def test_the_documents_hold_the_example_and_it_runs(
    graphs: Path, capsys: pytest.CaptureFixture[str]
):
    assert run(["simulate", "--example"]) == 0
    assert capsys.readouterr().out == (SCENARIOS / "simulate.toml").read_text()
    assert run(["simulate", str(SCENARIOS / "simulate.toml"), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["graphs"] == 3
