"""Train an expert's adapter on a user's facts, with settings that suit some dozens of them.

A run that is stopped or killed goes on when the same command is given again: its state is kept in
$COMPLLM_HOME under the name of the expert and a hash of the facts.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compllm.build_scripts.fetch_base import ensure_base
from compllm.build_scripts.own.facts import Fact, write_dataset
from compllm.build_scripts.staging import say
from compllm.build_scripts.train_lora import train_adapter
from compllm.build_scripts.training.settings import TrainSettings
from compllm.paths import home_dir
from compllm.prompts import TEMPLATES, ChatTemplate

_SETTINGS = TrainSettings(
    learning_rate=2e-3,
    max_tokens=1024,
    num_evaluations=6,
    patience=6,
    validation_tokens=20_000,
    warmup_steps=5,
)


def train_on(
    facts: Sequence[Fact],
    name: str,
    template: ChatTemplate,
    *,
    epochs: float,
    max_minutes: float,
) -> Path:
    """The PEFT directory of a trained adapter; `forget` takes it away.

    Loss, time left and accuracy are reported on stderr. Raises ConfigError, and KeyboardInterrupt
    where a signal stopped it.
    """
    settings = replace(_SETTINGS, epochs=epochs, max_minutes=max_minutes)
    folder = home_dir() / "training" / "own"
    partial = folder / f".{name}"
    shutil.rmtree(partial, ignore_errors=True)
    digest = write_dataset(facts, partial)
    key = hashlib.sha256(repr((digest, settings, str(ensure_base()))).encode()).hexdigest()[:12]
    work = folder / f"{name}-{key}"
    work.mkdir(exist_ok=True)
    data = work / "data"
    shutil.rmtree(data, ignore_errors=True)
    partial.rename(data)
    say(f"training {name} on {len(facts)} facts, for {epochs:g} epochs")
    best = run_training([data], work / name, settings, template)["best"]
    if best is not None:
        say(
            f"held-out accuracy: {best['exact']:.0%} of wordings that were not trained "
            f"(loss {best['loss']:.4f})"
        )
    return work / name


def run_training(
    datasets: Sequence[Path], out: Path, settings: TrainSettings, template: ChatTemplate
) -> dict[str, Any]:
    """Train `out` for the base in use, with the run's state beside it; returns the manifest. Raises
    ConfigError, and KeyboardInterrupt where a signal stopped it."""
    manifest = train_adapter(
        datasets,
        out,
        settings,
        checkpoint=ensure_base(),
        template=next(key for key, each in TEMPLATES.items() if each == template),
        work=out.parent,
    )
    if manifest is None:
        raise KeyboardInterrupt
    return manifest


def forget(adapter: Path) -> None:
    """Remove the state of a run that is over; `adapter` is what `train_on` returned."""
    shutil.rmtree(adapter.parent, ignore_errors=True)
