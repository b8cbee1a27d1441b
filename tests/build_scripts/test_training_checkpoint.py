"""Runs of train_lora.py that are stopped and continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from training_data import SETTINGS

from compllm.build_scripts.train_lora import main, train_adapter, unfinished_dir
from compllm.build_scripts.training.settings import TrainSettings
from compllm.errors import ConfigError
from compllm.formats.adapters import read_peft
from compllm.formats.checkpoint import validate_checkpoint


def test_a_stopped_run_ends_as_if_it_had_not_been_stopped(
    trained: Path,
    dataset: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from compllm.build_scripts.training import loop

    step = loop.take_step

    def step_and_stop(run, state, *more):  # type: ignore[no-untyped-def]
        step(run, state, *more)
        if state.step in (1, 4):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "take_step", step_and_stop)

    def train() -> object:
        return train_adapter(
            [dataset],
            tmp_path / "chem",
            SETTINGS,
            checkpoint=tiny_checkpoint,
            work=tmp_path / "work",
        )

    unfinished = unfinished_dir(tmp_path / "chem")
    assert train() is None
    assert not (tmp_path / "chem").exists()
    kept = json.loads((unfinished / "manifest.json").read_text())
    assert (kept["name"], kept["is_unfinished"], kept["best"]) == ("chem", True, None)
    assert train() is None
    kept = json.loads((unfinished / "manifest.json").read_text())
    assert (kept["steps"], kept["best"]["step"]) == (4, 3)
    assert (
        read_peft(unfinished, validate_checkpoint(tiny_checkpoint), "chem").task_id
        == (kept["lora_task_id"])
    )
    assert train() is not None
    assert not unfinished.exists()
    ours, theirs = (
        json.loads((folder / "manifest.json").read_text())
        for folder in (tmp_path / "chem", trained)
    )
    assert ours["sha256"] == theirs["sha256"]
    assert ours["curve"] == theirs["curve"]


def test_ctrl_c_keeps_what_was_learned_and_says_where(
    trained: Path,
    dataset: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At 95 % of a run it kept nothing. What was at --out stays: it may be a whole adapter."""
    from compllm.build_scripts.training import loop

    step = loop.take_step

    def step_and_stop(run, state, *more):  # type: ignore[no-untyped-def]
        step(run, state, *more)
        if state.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(loop, "take_step", step_and_stop)
    out = tmp_path / "chem"
    shutil.copytree(trained, out)
    options = ["--dataset", str(dataset), "--checkpoint", str(tiny_checkpoint), "--rank", "4"]
    options += ["--batch-size", "8", "--evaluations", "2", "--work", str(tmp_path / "work")]
    assert main([*options, "--out", str(out)]) == 130
    said = capsys.readouterr().err
    assert "stopped at step 5; the same command continues" in said
    assert (
        f"the best adapter so far is in {tmp_path / 'chem-unfinished'} (validation: exact" in said
    )
    assert (out / "manifest.json").read_bytes() == (trained / "manifest.json").read_bytes()
    assert main([*options, "--out", str(out)]) == 0
    assert "continuing at step 5" in capsys.readouterr().err


def test_minutes_are_counted_by_the_clock_over_all_parts_of_a_run(
    dataset: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor that is busy with other work, or many threads, made more or less of a minute."""
    from compllm.build_scripts.training import loop

    step = loop.take_step

    def slow_step(run, state, *more):  # type: ignore[no-untyped-def]
        step(run, state, *more)
        state.seconds += 20.0  # it waited for something: no processor time goes by
        if state.step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop, "take_step", slow_step)
    settings = replace(SETTINGS, max_minutes=0.9)

    def train() -> dict[str, object] | None:
        place = {"checkpoint": tiny_checkpoint, "work": tmp_path / "work"}
        return train_adapter([dataset], tmp_path / "chem", settings, **place)

    assert train() is None
    manifest = train()
    assert manifest is not None
    assert manifest["steps"] == 3  # of 6


def test_another_run_does_not_continue_this_one(
    dataset: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    def train(settings: TrainSettings, *, is_restart: bool = False) -> None:
        train_adapter(
            [dataset],
            tmp_path / "chem",
            settings,
            checkpoint=tiny_checkpoint,
            work=tmp_path / "work",
            is_restart=is_restart,
        )

    short = replace(SETTINGS, epochs=0.5)
    train(short)
    with pytest.raises(ConfigError, match="--restart"):
        train(replace(short, learning_rate=1e-3))
    train(replace(short, learning_rate=1e-3), is_restart=True)
