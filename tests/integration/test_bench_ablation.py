"""A smoke run of the ablation benchmark, on a small engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.path import bench_ablation
from benchmarks.path.ablation_tables import RATIOS
from benchmarks.path.ablation_variants import VARIANTS

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
def test_a_smoke_run_has_every_variant_of_every_part(
    server: ServerInfo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experts.toml").write_text(CATALOGUE)  # no experts: all go to the base
    config = tmp_path / "config.toml"
    config.write_text(f"catalogue = '{tmp_path / 'experts.toml'}'\n")
    out = tmp_path / "results"
    arguments = ["--smoke", "--url", server.grpc_url, "--config", str(config), "--out", str(out)]
    assert bench_ablation.main(arguments) == 0
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((out / "bench_ablation.json").read_text()) == data
    assert (out / "bench_ablation.png").stat().st_size > 10_000
    assert "| load |" in (out / "bench_ablation.md").read_text()
    assert data["summary"]["is_equal_work"]
    assert [(row["part"], row["variant"]) for row in data["tables"][RATIOS]] == [
        (part, variant.name) for part, variants in VARIANTS.items() for variant in variants
    ]
    # Neighbours asked the same at the same time, and only those who may share did.
    shared = {row["variant"] for row in data["tables"][RATIOS] if row["shared_nodes"]}
    assert not shared & {"no single-flight", "all off"}
