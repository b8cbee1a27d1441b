"""Bootstrap confidence intervals: over records, by percentiles, seeded (Efron 1979, by scipy).

Percentiles, because BCa has no value where all records agree. There the interval has no width:
with n records and no failure, up to 3/n may still fail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
_NUM_RESAMPLES = 2000
_BATCH = 200  # resamples at a time: bounds the memory of large sets


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the interval around it."""

    value: float
    low: float
    high: float

    def percent(self) -> dict[str, float]:
        return {name: round(100 * getattr(self, name), 1) for name in ("value", "low", "high")}


def mean(values: Sequence[float] | Sequence[bool], seed: int = 0) -> Estimate:
    """Of one value a record: hits, or differences of two contestants on the same record."""
    return _bootstrap((np.asarray(values, float),), lambda x, axis: x.mean(axis=axis), seed)


def pooled_f1(common: ArrayLike, ours: ArrayLike, gold: ArrayLike, seed: int = 0) -> Estimate:
    """F1 over all records together, of the counts in each; records are drawn, not counts."""

    def f1(
        c: NDArray[np.float64], o: NDArray[np.float64], g: NDArray[np.float64], axis: int
    ) -> NDArray[np.float64]:
        total = o.sum(axis=axis) + g.sum(axis=axis)
        # Where neither has anything they agree.
        return np.where(total == 0, 1.0, 2 * c.sum(axis=axis) / np.maximum(total, 1))

    return _bootstrap(tuple(np.asarray(x, float) for x in (common, ours, gold)), f1, seed)


def _bootstrap(samples: tuple[NDArray[np.float64], ...], statistic: object, seed: int) -> Estimate:
    from scipy.stats import bootstrap

    if not len(samples[0]):
        raise ValueError("there are no records to take an interval over")
    value = float(statistic(*samples, axis=-1))  # type: ignore[operator]
    if len(samples[0]) == 1:
        return Estimate(value, value, value)
    found = bootstrap(
        samples,
        statistic,
        n_resamples=_NUM_RESAMPLES,
        batch=_BATCH,
        vectorized=True,
        paired=True,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    low, high = (float(end) for end in found.confidence_interval)
    return Estimate(value, low, high)
