"""`compllm eval` hands everything on to the scripts."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.accuracy import eval_plans

from compllm.cli import eval as eval_cli
from compllm.cli.app import run


def test_arguments_and_status_are_the_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(eval_plans, "main", lambda arguments, prog: seen.append(arguments) or 3)
    assert run(["eval", "plans", "--limit", "5", "--source", "p", "all"]) == 3
    assert seen == [["--limit", "5", "--source", "p", "all"]]


def test_help_is_the_scripts_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "accuracy", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: compllm eval accuracy ")
    assert "--contestants" in out
    assert run(["eval", "plans", "--wings"]) == 2


def test_an_installed_package_says_where_the_scripts_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def missing(name: str) -> Path:
        raise FileNotFoundError(name)

    monkeypatch.setattr(eval_cli, "resource_dir", missing)
    assert run(["eval", "plans"]) == 2
    assert "source checkout" in capsys.readouterr().err
    for name in ("accuracy", "plans", "router"):
        assert run(["eval", name, "--help"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"compllm eval {name}: ")
        assert f"What is missing: the folder benchmarks/ with the script eval_{name}.py" in out
        assert "How to get it: run pip install -e '.[train]' in a source checkout." in out
    monkeypatch.setattr(eval_cli, "resource_dir", lambda name: tmp_path)
    assert run(["eval", "router"]) == 2
    assert "no eval_router.py" in capsys.readouterr().err
