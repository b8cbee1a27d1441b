"""How good a router's scores are: the right expert, and telling in-domain questions from others.

A choice is the expert with the highest score, whatever the floor. AUROC is the probability that an
in-domain question has a higher best score than one that no expert is for: it needs no floor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.intervals import Estimate, mean
from compllm.routing.embed import Array

Labels = npt.NDArray[np.int64]  # position of the expert, -1 for none
_NUM_RESAMPLES = 1000


def choice(scores: Array, labels: Labels, seed: int = 0) -> Estimate:
    """Share of in-domain questions whose own expert scores highest."""
    inside = labels >= 0
    return mean((scores.argmax(axis=1) == labels)[inside].tolist(), seed)


def auroc(inside: Array, outside: Array) -> float:
    """Of best scores; ties count half (Mann and Whitney 1947)."""
    both = np.concatenate([inside, outside])
    order = np.argsort(both, kind="stable")
    ranks = np.empty(len(both))
    ranks[order] = np.arange(1, len(both) + 1)
    # Equal values share the mean of their ranks.
    _, inverse, counts = np.unique(both, return_inverse=True, return_counts=True)
    ranks = (np.bincount(inverse, weights=ranks) / counts)[inverse]
    total = ranks[: len(inside)].sum() - len(inside) * (len(inside) + 1) / 2
    return float(total / (len(inside) * len(outside)))


def auroc_interval(
    scores: Array, labels: Labels, keep: npt.NDArray[np.bool_], seed: int = 0
) -> Estimate:
    """AUROC of the questions kept, with a percentile interval over both kinds resampled apart."""
    best = scores.max(axis=1)
    inside, outside = best[(labels >= 0) & keep], best[(labels < 0) & keep]
    rng = np.random.default_rng(seed)
    drawn = [
        auroc(rng.choice(inside, len(inside)), rng.choice(outside, len(outside)))
        for _ in range(_NUM_RESAMPLES)
    ]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Estimate(auroc(inside, outside), float(low), float(high))
