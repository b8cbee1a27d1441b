"""`compllm replay`, on the scripted backend."""

import json
from pathlib import Path
from typing import Any

import pytest
from path_parts import CATALOGUE
from replay_parts import PLAN, ClockedBackend

from compllm.backend import Backend
from compllm.cli.app import run
from compllm.cli.replay import PolicyChoice
from compllm.config import Config
from compllm.lab.replay.drive import Ran
from compllm.lab.replay.policies import POLICIES
from compllm.lab.replay.runner import ReplayLLM
from compllm.lab.replay.session import ReplaySession
from compllm.testing import HashingEncoder

GRAPH = {
    "question": "What is the whole?",
    "steps": [each.text for each in PLAN.sub_queries],
    "parents": [[parent - 1 for parent in each.parents] for each in PLAN.sub_queries],
}
NO_PLAN = {"overhead": "none"}
SCENARIOS = Path(__file__).parents[2] / "docs" / "scenarios"


@pytest.fixture(autouse=True)
def backend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Backend:
    backend = ClockedBackend()

    async def connect(config: Config) -> ReplayLLM:
        return ReplayLLM(backend, HashingEncoder(), CATALOGUE, config)

    monkeypatch.setattr(ReplayLLM, "connect", connect)
    monkeypatch.setenv("COMPLLM_SERVER_URL", "127.0.0.1:1")
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    return backend


@pytest.fixture
def graphs(tmp_path: Path) -> Path:
    file = tmp_path / "graphs.jsonl"
    file.write_text("".join(json.dumps({"id": f"g{n}", **GRAPH}) + "\n" for n in range(3)))
    return file


def replay(graphs: Path, out: Path | str, *options: object, **keys: Any) -> int:
    """keys: of the scenario, written next to the file of graphs."""
    scenario = graphs.with_name("scenario.toml")
    values = {"graphs": graphs.name, **keys}
    scenario.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    return run(["replay", str(scenario), "--json", str(out), *map(str, options)])


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *records, last = [json.loads(line) for line in path.read_text().splitlines()]
    return records, last["summary"]


def test_a_line_for_each_graph_and_the_summary_last(
    graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert replay(graphs, out, **NO_PLAN, tokens_per_node=5) == 0
    records, summary = read(out)
    assert [record["id"] for record in records] == ["g0", "g1", "g2"]
    assert {node["num_output_tokens"] for record in records for node in record["nodes"]} == {5}
    assert summary["is_complete"]
    assert summary["lengths"] == {"mean": 5, "sigma": 0.0, "seed": 0}
    assert summary["engine_profile"]["prefill_ms_per_token"] == pytest.approx(2)
    assert "3 graphs replayed" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("policy", ["sequential", "levels", "dataflow", "polling"])
def test_the_same_seed_is_the_same_work_under_each_policy(
    policy: str, graphs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    drawn = {"tokens_per_node": 20, "tokens_sigma": 0.7, "limit": 1}
    assert replay(graphs, out, "--policy", policy, "--seed", 4, **NO_PLAN, **drawn) == 0
    records, summary = read(out)
    lengths = [node["num_output_tokens"] for node in records[0]["nodes"]]
    assert lengths == [20, 14, 39, 22]
    assert (summary["policy"], summary["num_graphs"]) == (policy, 1)


def test_output_may_be_standard_output(
    graphs: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert replay(graphs, "-", **NO_PLAN, limit=1) == 0
    lines = capsysbinary.readouterr().out.splitlines()
    assert [*map(set, map(json.loads, lines))][-1] == {"summary"}


def test_an_admission_policy_and_a_rate_can_be_given(graphs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    assert replay(graphs, out, **NO_PLAN, rate_qps=500, admission="deepest_first") == 0
    _, summary = read(out)
    assert summary["rate_qps"] == 500
    assert summary["client"]["engines"]["tensorrt_llm"]["num_admitted"] == 12


def test_a_failing_graph_is_reported_and_counted(
    graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"  # the scripted backend writes no plan
    assert replay(graphs, out) == 1
    records, summary = read(out)
    assert summary["num_failed"] == 3
    assert all("did not write the plan" in record["error"] for record in records)
    assert "3 of them failed: g0: the generator" in capsys.readouterr().err


def test_an_interruption_keeps_what_is_finished(
    graphs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ReplaySession.run

    async def interrupted(session: ReplaySession, llm: ReplayLLM, on_ran: Any) -> None:
        def stop_at_the_second(ran: Ran) -> None:
            if ran.index == 1:
                raise KeyboardInterrupt

        await real(session, llm, stop_at_the_second)

    monkeypatch.setattr(ReplaySession, "run", interrupted)
    out = tmp_path / "out.jsonl"
    assert replay(graphs, out, **NO_PLAN) == 130
    records, summary = read(out)
    assert [record["id"] for record in records] == ["g0", "g1"]
    assert not summary["is_complete"]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"rate_qps": 1, "concurrency": 2}, "rate_qps and concurrency"),
        ({"tokens_per_node": 0}, "tokens_per_node = 0 in "),
        ({"policy": "random"}, "policy = 'random' in "),
        ({"tokens": 3}, "unknown key 'tokens'; the keys are graphs, limit, tokens_per_node"),
    ],
)
def test_bad_keys_are_one_error(
    keys: dict[str, Any],
    problem: str,
    graphs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert replay(graphs, tmp_path / "out", **keys) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line
    assert str(graphs.with_name("scenario.toml")) in line


def test_a_bad_option_is_one_error(
    graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(graphs, tmp_path / "out", "--policy", "random") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "random" in line


def test_the_policies_of_the_option_are_those_of_the_file() -> None:
    assert {each.value for each in PolicyChoice} == set(POLICIES)


def test_options_stand_in_place_of_the_files_keys(graphs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    options = ("--policy", "levels", "--seed", 0, "--salt", "B")
    keys = {"policy": "polling", "seed": 3, "salt": "A", "limit": 1}
    assert replay(graphs, out, *options, **NO_PLAN, **keys) == 0
    _, summary = read(out)
    assert [summary[key] for key in ("policy", "seed", "salt")] == ["levels", 0, "B"]


def test_the_documents_hold_the_example_and_it_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["replay", "--example"]) == 0
    example = capsys.readouterr().out
    assert example == (SCENARIOS / "replay.toml").read_text()
    scenario = tmp_path / "replay.toml"
    # The scripted backend writes no plan.
    scenario.write_text(example.replace('"plan+compose"', '"none"'))
    (tmp_path / "graphs.jsonl").write_bytes((SCENARIOS / "graphs.jsonl").read_bytes())
    out = tmp_path / "out.jsonl"
    assert run(["replay", str(scenario), "--json", str(out)]) == 0
    records, _ = read(out)
    assert [record["id"] for record in records] == ["wide", "chain", "one"]


def test_a_bad_line_and_a_bad_place_are_found_before_the_run(
    graphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(graphs, "/nowhere/out", **NO_PLAN) == 2
    assert "cannot write /nowhere/out" in capsys.readouterr().err
    graphs.write_text(graphs.read_text() + "{\n")
    out = tmp_path / "out"
    out.write_text("as it was")
    assert replay(graphs, out, **NO_PLAN) == 2
    assert f"{graphs}: line 4 is not JSON" in capsys.readouterr().err
    assert out.read_text() == "as it was"
