"""bench_host on a small engine: host and inference make the whole step."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.engine import bench_host
from engines import make_engine


def test_the_hosts_part_of_every_step_is_told(tiny_checkpoint: Path, tmp_path: Path) -> None:
    engine_dir = make_engine(tiny_checkpoint, tmp_path / "tiny", "int8", {})
    arguments = ["--quick", "--engine", str(engine_dir), "--out", str(tmp_path)]
    assert bench_host.main(arguments) == 0
    saved = json.loads((tmp_path / "bench_host.json").read_text())
    rows = saved["tables"]["host time of a decoding step"]
    assert [row["requests"] for row in rows] == list(bench_host.NUM_REQUESTS[:2])
    for row in rows:
        assert row["steps"] > 0
        assert 0 < row["host_p50_ms"] < row["step_ms"]
        assert 0 < row["inference_ms"] < row["step_ms"]
