"""What a training run is asked to do. Part of the checkpoint, so that only the same run resumes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from compllm.formats.shape import MODULES


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """The first try's measured settings; data and time decide the rest."""

    learning_rate: float = 1e-3
    rank: int = 8
    alpha: int = 0  # 0: twice the rank, so that the scale stays 2 whatever the rank
    modules: tuple[str, ...] = MODULES
    first_layer: int = 0  # the layers below it are left as they are, and cost no backward pass
    batch_size: int = 16
    group_size: int = 1  # examples of a batch that begin alike, and share more of their tokens
    epochs: float = 3.0
    max_minutes: float = 0.0  # by the clock, evaluations included; 0 is unlimited
    warmup_steps: int = 10
    weight_decay: float = 0.0
    max_norm: float = 1.0  # gradients are clipped to it
    max_tokens: int = 192  # longer examples are left out
    num_evaluations: int = 10  # over the whole run
    validation_tokens: int = 8000  # examples of a validation, in tokens
    patience: int = 4  # evaluations without a better one before it ends
    seed: int = 0
    precision: str = "float32"  # of the frozen base and of the products; factors are float32

    @property
    def scale_alpha(self) -> int:
        return self.alpha or 2 * self.rank

    def fingerprint(self, *more: object) -> str:
        """Of everything that decides what a step computes."""
        text = json.dumps([dataclasses.asdict(self), *more], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "alpha": self.scale_alpha}
