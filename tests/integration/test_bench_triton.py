"""Smoke runs of the benchmarks that drive a Triton, on a small engine."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from benchmarks.load import bench_client, bench_triton
from benchmarks.triton_load import Timed, milliseconds, prompts, read_metrics

from compllm.backends.tokenizer import Tokenizer
from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton


def test_somebodys_server_is_measured_in_both_loops(
    server: ServerInfo,
    task_ids: dict[str, int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ids = ",".join(map(str, task_ids.values()))
    arguments = ["--quick", "--url", server.grpc_url, "--metrics-url", server.metrics_url]
    bench_triton.main([*arguments, "--adapter-ids", ids, "--rates", "50", "--out", str(tmp_path)])
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads((tmp_path / "bench_triton.json").read_text()) == data
    closed, opened = data["tables"]["closed loop"], data["tables"]["open loop"]
    assert [row["users"] for row in closed] == [1, 4]
    assert [row["rate_per_s"] for row in opened] == [50]
    assert [row["failed"] for row in closed + opened] == [0, 0, 0]
    assert all(
        row["ttft_p50_ms"] <= row["all_p50_ms"] for row in data["tables"]["open loop: latency"]
    )


def test_storms_and_cancels_are_counted(
    engine_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path / "home"))
    bench_client.main(["--quick", "--engine", str(engine_dir), "--out", str(tmp_path)])
    data = json.loads(capsys.readouterr().out.splitlines()[-1])
    storm = data["summary"]["storm"]
    assert (storm["failed"], storm["wrong_adapter"]) == (0, 0)
    assert storm["resends_over_evictions_at_most"] <= 8
    assert data["summary"]["num_cancels"] == 30
    assert data["summary"]["active_at_the_end"] == 0
    assert data["summary"]["max_steps_to_cancel"] <= 2


def test_prompts_differ_and_are_as_long_as_asked_for(base_dir: Path) -> None:
    tokenizer = Tokenizer.from_dir(base_dir)
    texts = prompts(tokenizer, 20, 50, random.Random(0))
    assert len(set(texts)) == 20
    assert all(45 <= len(tokenizer.encode_text(text)) <= 60 for text in texts)
    assert texts == prompts(tokenizer, 20, 50, random.Random(0))


def test_metrics_are_read_by_name_and_own_label(server: ServerInfo) -> None:
    found = asyncio.run(asyncio.to_thread(read_metrics, server.metrics_url))
    assert found["nv_trt_llm_request_metrics max"] == 32
    assert "compllm_lora_evictions_total" in found


def test_one_token_has_no_time_per_token() -> None:
    assert Timed(num_tokens=1).tpot_s is None
    assert Timed(latency_s=3.0, ttft_s=1.0, num_tokens=3).tpot_s == 1.0
    assert milliseconds("x", []) == {"x_p50_ms": None, "x_p95_ms": None, "x_p99_ms": None}
