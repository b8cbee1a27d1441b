"""Plan or answer: does a question need a plan at all? Before decompose, on the encoder's vector.

A softmax over kinds of questions (`build_scripts/train_gate.py` fits it, numpy runs it) gives the
probability that one expert alone should answer. `auto` sends a question straight on when it reaches
the floor that kept the share of wrong ones among those sent below the wanted risk, on questions
that the gate was not fitted on; `on`, when it is more likely than not. Gate and floors belong to
one encoder. The file is checked like a router's: what was cut or edited never decides anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compllm.config import GateConfig
from compllm.errors import RouteError
from compllm.paths import resource_dir
from compllm.plan import direct_plan
from compllm.routing.archive import read_archive, told_as, write_archive
from compllm.routing.embed import Array, Encoder
from compllm.routing.heads import Layer, Softmax
from compllm.types import Plan

FORMAT = 1
DIRECT = "direct"  # the one name that the head scores
LIKELY = 0.5  # the floor of `on`
_MAX_BYTES = 50_000_000


@dataclass(frozen=True, slots=True)
class Gate:
    """A head that scores how likely a question needs no plan, and floors for wanted risks."""

    head: Softmax
    floors: tuple[tuple[float, float], ...]  # (risk, floor), risks rising
    encoder: str  # id of the encoder whose vectors the head reads
    record: Mapping[str, Any] = field(default_factory=dict)  # how it was made; not read here

    def scores(self, vectors: Array) -> npt.NDArray[np.float32]:
        """Probability [n] that a question needs no plan. Raises RouteError."""
        return self.head.scores(vectors)[:, 0]

    def floor(self, risk: float) -> float | None:
        """The loosest floor that keeps this risk; None where none was found that does."""
        kept = [floor for known, floor in self.floors if known <= risk]
        return min(kept, default=None)


@dataclass(frozen=True, slots=True)
class GateKeeper:
    """A gate at work: its encoder and the floor that the settings ask for."""

    gate: Gate
    encoder: Encoder
    floor: float

    async def plan(self, question: str) -> Plan | None:
        """The one-node plan, or None where the generator should plan. The router needs the same
        vector next: the encoder keeps it."""
        (score,) = self.gate.scores(await self.encoder.encode([question]))
        return direct_plan(question) if score >= self.floor else None


async def open_gate(settings: GateConfig, encoder: Encoder) -> GateKeeper | None:
    """The gate that the settings ask for; None: every question is planned.

    `auto` without a file takes the shipped gate where it is for this encoder. Raises RouteError for
    another encoder's gate, ConfigError for a file that cannot be read.
    """
    if settings.mode == "off":
        return None
    path = Path(settings.file) if settings.file else default_gate()
    gate = await asyncio.to_thread(load_gate, path)
    if gate.encoder != encoder.id:
        if settings.mode == "auto" and not settings.file:
            return None
        raise RouteError(
            f"the gate in {path} was made for encoder {gate.encoder!r}, not {encoder.id!r}: make "
            "one with `compllm train gate`, or set gate.mode to off"
        )
    floor = LIKELY if settings.mode == "on" else gate.floor(settings.risk)
    return None if floor is None else GateKeeper(gate, encoder, floor)


def default_gate() -> Path:
    """The shipped gate."""
    return resource_dir("engines") / "gate.npz"


def save_gate(path: Path, gate: Gate) -> None:
    """Write it whole, or leave what was there."""
    (layer,) = gate.head.layers
    about = {
        "format": FORMAT,
        "encoder": gate.encoder,
        "floors": [list(pair) for pair in gate.floors],
        "record": dict(gate.record),
    }
    arrays = {"weights": layer.weights, "bias": layer.bias, "groups": layer.groups}
    write_archive(path, about, arrays)


def load_gate(path: Path) -> Gate:
    """Read and check a gate. Raises ConfigError."""
    with told_as("gate", path, "gate"):
        about, arrays = read_archive(path, FORMAT, _MAX_BYTES)
        if not isinstance(about["encoder"], str):
            raise ValueError("its encoder is not a name")
        return Gate(_head(arrays), _floors(about["floors"]), about["encoder"], about["record"])


def _head(arrays: Mapping[str, Any]) -> Softmax:
    weights, bias, groups = arrays["weights"], arrays["bias"], arrays["groups"]
    if weights.ndim != 2 or not weights.shape[1:] == bias.shape == groups.shape != (0,):
        raise ValueError("the shapes of its arrays do not fit together")
    if not all(each.dtype.kind == "f" and np.isfinite(each).all() for each in (weights, bias)):
        raise ValueError("its weights are not finite numbers")
    if groups.dtype.kind != "i" or not set(groups.tolist()) <= {0, -1}:
        raise ValueError("its groups are not 0 and -1")
    layer = Layer(
        np.ascontiguousarray(weights, np.float32), bias.astype(np.float32), groups.astype(np.int64)
    )
    return Softmax((DIRECT,), (layer,))


def _floors(pairs: Any) -> tuple[tuple[float, float], ...]:
    found = []
    for risk, floor in pairs:
        for value in (risk, floor):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"its floors hold {value!r}, expected numbers from 0 to 1")
        found.append((float(risk), float(floor)))
    return tuple(found)
