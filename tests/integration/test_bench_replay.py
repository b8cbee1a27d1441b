"""A smoke run of the replay benchmark, on a small engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.path import bench_replay, replay_tables

from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton

CATALOGUE = """
[base]
system = "You answer."
[router]
threshold = 0.3
encoder = "any"
"""


@pytest.mark.usefixtures("encoder_dir")
def test_a_smoke_run_has_every_policy_and_the_bound(
    server: ServerInfo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experts.toml").write_text(CATALOGUE)  # no experts: all go to the base
    config = tmp_path / "config.toml"
    config.write_text(f"catalogue = '{tmp_path / 'experts.toml'}'\n")
    out = tmp_path / "results"
    arguments = ["--smoke", "--url", server.grpc_url, "--config", str(config), "--out", str(out)]
    assert bench_replay.main(arguments) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((out / "bench_replay.json").read_text()) == data
    assert (out / "bench_replay.png").stat().st_size > 10_000
    assert data["summary"]["num_failed"] == 0
    assert len(data["summary"]["records"]) == 2 * 2 * len(replay_tables.POLICIES)
    for table in data["tables"].values():
        assert len(table) == 2 * len(replay_tables.POLICIES)
    sequential = data["tables"][replay_tables.SPEEDUPS][0]
    assert (sequential["policy"], sequential["speedup"]) == ("sequential", 1.0)
    tokens = [record["num_answer_tokens"] for record in data["summary"]["records"]]
    assert tokens == ([0] * 4 + [4] * 4) * 2


def test_a_salt_is_of_one_run_alone() -> None:
    salts = {
        bench_replay.salt_of(part, policy)
        for part in replay_tables.PARTS
        for policy in replay_tables.POLICIES
    }
    assert len(salts) == len(replay_tables.PARTS) * len(replay_tables.POLICIES)
