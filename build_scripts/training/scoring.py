"""How good is the adapter on held-out wordings: loss and exact match, all of it and by kind.

Exact match is that of greedy decoding, without decoding: a response is written token by token
exactly when each of its tokens is the most likely one after those before it (and the token that
ends it after the last). One forward pass shows that for all tokens at once; a test compares it with
real generation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from compllm.build_scripts.training.examples import Example
from compllm.build_scripts.training.packed_model import PackedModel
from compllm.build_scripts.training.packing import pack

_AT_ONCE = 64  # examples of one forward pass


@dataclass(frozen=True, slots=True)
class Score:
    loss: float  # mean over response tokens
    exact: float  # share of examples answered exactly
    num_examples: int
    by_kind: dict[str, float] = field(default_factory=dict)  # exact match


def sample(examples: Sequence[Example], num_tokens: int, seed: int) -> list[Example]:
    """Some of them, the same for the same seed, in a random order: as many as have this many
    tokens together, one at least."""
    chosen: list[Example] = []
    for place in np.random.default_rng(seed).permutation(len(examples)):
        if num_tokens <= 0:
            break
        chosen.append(examples[int(place)])
        num_tokens -= chosen[-1].num_tokens
    return chosen


def score(model: PackedModel, examples: Sequence[Example], device: torch.device) -> Score:
    by_kind: dict[str, list[bool]] = {}
    total, num_tokens = 0.0, 0
    with torch.inference_mode():
        for chunk in _chunks(examples):
            batch = pack(chunk).to(device)
            logits = model.logits(batch)
            total += functional.cross_entropy(logits, batch.targets, reduction="sum").item()
            num_tokens += len(batch.targets)
            wrong = set(batch.rows[logits.argmax(-1) != batch.targets].tolist())
            for row, example in enumerate(chunk):
                by_kind.setdefault(example.kind, []).append(row not in wrong)
    right = [is_right for kind in by_kind.values() for is_right in kind]
    kinds = {kind: _mean(by_kind[kind]) for kind in sorted(by_kind)}
    loss = total / max(num_tokens, 1)
    return Score(loss if math.isfinite(loss) else math.inf, _mean(right), len(right), kinds)


def _chunks(examples: Sequence[Example]) -> Iterable[Sequence[Example]]:
    # Alike lengths together: attention pads to the longest.
    ordered = sorted(examples, key=lambda example: example.num_tokens)
    for start in range(0, len(ordered), _AT_ONCE):
        yield ordered[start : start + _AT_ONCE]


def _mean(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0
