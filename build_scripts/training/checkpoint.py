"""The state of a run on disk: adapter, optimizer, place in the data, RNG, curve, the best so far.

One file, written beside its place and renamed, so that a killed run leaves the last whole one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compllm.errors import ConfigError


@dataclass(slots=True)
class State:
    """Everything that continuing needs, beside settings and data."""

    fingerprint: str
    step: int = 0
    seconds: float = 0.0  # of training, evaluations included
    cpu_seconds: float = 0.0  # of all threads
    num_tokens: int = 0  # trained on, as if no example shared any
    num_nodes: int = 0  # of them computed
    loss: float = 0.0  # running mean
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)  # the adapter of the best evaluation
    best_place: int = -1  # in the curve
    adapter: dict[str, Tensor] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    rng: Tensor | None = None


def save_state(path: Path, state: State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save({name: getattr(state, name) for name in State.__slots__}, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_state(path: Path, fingerprint: str) -> State | None:
    """The state of the same run, None where there is none. Raises ConfigError for another run's."""
    if not path.is_file():
        return None
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
        state = State(**values)
    except Exception as error:
        raise ConfigError(f"{path} is damaged ({error}): delete it or give --restart") from error
    if state.fingerprint != fingerprint:
        raise ConfigError(
            f"{path} belongs to a run with other settings, data or base: "
            "give the same ones to continue it, or --restart to begin anew"
        )
    return state
