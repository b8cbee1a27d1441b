"""bench_isa on a small engine: a process for each instruction set, each with its own times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.engine import bench_isa
from engines import make_engine


def test_each_instruction_set_has_its_times(tiny_checkpoint: Path, tmp_path: Path) -> None:
    engine_dir = make_engine(tiny_checkpoint, tmp_path / "tiny", "int8", {})
    arguments = ["--quick", "--isa", "generic", "--isa", "vnni", "--engine", str(engine_dir)]
    assert bench_isa.main([*arguments, "--out", str(tmp_path)]) == 0
    saved = json.loads((tmp_path / "bench_isa.json").read_text())
    assert saved["summary"]["memory_floor_ms"] > 0
    rows = saved["tables"]["step, ms"]
    assert [row["kind"] for row in rows] == ["decode", "decode", "prefill"]
    for row in rows:
        assert row.keys() - {"kind", "tokens"} > {"generic"}
        assert all(row[name] > 0 for name in row.keys() - {"kind", "tokens"})


def test_a_process_that_died_is_told(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="died"), bench_isa.worker("generic", tmp_path):
        pass
