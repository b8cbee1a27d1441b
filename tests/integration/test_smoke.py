"""The smoke script against the embedded server: everything that it can do passes, and a broken
assumption is seen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import bare_catalogue

from compllm import paths
from compllm.build_scripts import smoke_triton
from compllm.build_scripts.smoke_triton import CHECKS, main
from compllm.server import triton_server
from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def bounded(
    engine_dir: Path, encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerInfo]:
    """An engine that keeps adapters in a cache of bounded size, as TensorRT-LLM does, and the face
    with few tokens for each node: the tiny engine holds 512 in all."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        patch.setenv("COMPLLM_HOME", str(home))
        patch.setenv("COMPLLM_CATALOGUE", str(bare_catalogue(home)))
        patch.setenv("COMPLLM_LIMITS_MAX_NODE_TOKENS", "16")
        paths.encoder_dir().parent.mkdir(parents=True)
        paths.encoder_dir().symlink_to(encoder_dir)
        options = {"is_lora_cache": True, "max_adapters": 4}
        with triton_server.running(
            engine_dir, is_shared=False, has_face=True, has_http=True, options=options
        ) as info:
            yield info


def _arguments(server: ServerInfo, *more: str) -> list[str]:
    urls = ["--http-url", server.http_url, "--metrics-url", server.metrics_url]
    return ["--url", server.grpc_url, *urls, *more]


def _run(server: ServerInfo, folder: Path, *more: str) -> tuple[int, dict[str, Any]]:
    file = folder / "report.json"
    code = main(_arguments(server, "--json", str(file), "--seed", "1", *more))
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return code, report


def test_everything_passes_on_an_engine_with_a_lora_cache(
    bounded: ServerInfo, engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapters = ("--adapters", str(engine_dir))
    file = tmp_path / "reference.json"
    assert main(_arguments(bounded, *adapters, "--record", str(file))) == 0
    capsys.readouterr()
    code, report = _run(bounded, tmp_path, *adapters, "--reference", str(file))
    failed = [each for each in report["checks"] if each["status"] == "fail"]
    assert (code, failed) == (0, [])
    assert report["counts"]["skip"] == 0
    assert len(report["checks"]) == len(CHECKS)
    told = capsys.readouterr().out.splitlines()
    assert json.loads(told[-1]) == report
    assert sum(line.startswith("PASS") for line in told) == report["counts"]["pass"]


def test_answers_of_other_weights_are_seen(bounded: ServerInfo, tmp_path: Path) -> None:
    file = tmp_path / "reference.json"
    assert main(_arguments(bounded, "--record", str(file))) == 0
    made = json.loads(file.read_text())
    made["answers"]["base"] = [[0] for _ in made["answers"]["base"]]
    file.write_text(json.dumps(made))
    only = ("--only", "as the reference")
    code, report = _run(bounded, tmp_path, "--reference", str(file), *only)
    assert code == 1
    assert "base: 0% first tokens" in report["checks"][0]["found"]
    code, report = _run(bounded, tmp_path, *only)
    assert (code, report["counts"]["skip"]) == (0, 1)


def test_server_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--url", "127.0.0.1:1", "--timeout", "2"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: no model tensorrt_llm at 127.0.0.1:1")
    assert told.count("\n") == 1


def test_broken_assumption_fails_the_run(
    bounded: ServerInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that matched other words would see that here."""
    import re

    from compllm.build_scripts.smoke import adapters

    monkeypatch.setattr(adapters, "MISSING", re.compile("adapter is gone"))
    code, report = _run(bounded, tmp_path, "--only", "unknown adapter")
    assert code == 1
    assert report["counts"] == {"pass": 0, "fail": 1, "skip": 0}
    assert "other words" in report["checks"][0]["found"]


def test_names_of_checks_are_unique() -> None:
    names = [check.name for check in smoke_triton.CHECKS]
    assert len(names) == len(set(names))
