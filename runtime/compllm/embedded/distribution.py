"""What may be drawn from one row of logits, and the draw: temperature, top-k, top-p.

The arithmetic of `sampling.py`. A vocabulary has 50 to 150 thousand tokens and the few that matter
must be found in a fraction of a millisecond, so nothing here sorts the whole row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
Kept = tuple[NDArray[np.int64], NDArray[np.float64]]  # token ids, and their cumulated weights

_NEG_INF = np.float32(-np.inf)
# Rows of the folded logits in _top_ids: keeps both its reductions short at 32k-150k tokens.
_FOLD = 32
_BLOCK = 256
_MAX_SORTED = 1024  # candidates of top-p; sorting fewer gains nothing


@dataclass(frozen=True, slots=True)
class Row:
    """Logits of one request; `highest` is their maximum and must be a number."""

    logits: Logits
    highest: np.float32
    temperature: float  # above 0

    def weights(self, ids: NDArray[np.int64] | None = None) -> Logits:
        """Probabilities up to a common factor, of all tokens or these; the best has weight 1."""
        weights = (self.logits if ids is None else self.logits[ids]) - self.highest
        if self.temperature != 1:
            weights /= np.float32(self.temperature)
        np.exp(weights, out=weights)
        return weights


def log_prob(logits: Logits, token: int) -> float:
    """Natural logarithm of the token's probability among all tokens, at temperature 1."""
    with np.errstate(over="ignore", under="ignore"):
        total = float(np.exp(logits).sum())
    highest = np.float32(0)
    if not 1e-30 < total < math.inf:  # rarely: shifting every row first takes half as long again
        highest = logits.max()
        total = float(Row(logits, highest, 1.0).weights().sum())
    # Rounded, it may exceed 0.
    return min(0.0, float(logits[token] - highest) - math.log(total))


def draw(row: Row, top_k: int, top_p: float, u: float) -> int:
    """The token that holds u in [0, 1). top_k 0 and top_p 1 keep every token."""
    if not top_k and top_p == 1:
        return _draw_any(row.weights(), u)
    ids, cumulated = keep(row, top_k, top_p)
    return int(ids[_place(cumulated, u * cumulated[-1])])


def keep(row: Row, top_k: int, top_p: float) -> Kept:
    """The tokens that top-k, then top-p leave. Ties keep the lower id; never empty: top_p 0 leaves
    the best token."""
    if not top_k:
        weights = row.weights()
        if top_p < 1:
            return _nucleus(weights, top_p)
        return np.arange(weights.size), np.cumsum(weights, dtype=np.float64)
    ids = _top_ids(row.logits, top_k)
    cumulated = np.cumsum(row.weights(ids), dtype=np.float64)
    if top_p < 1:
        num_kept = int(cumulated.searchsorted(top_p * cumulated[-1])) + 1
        ids, cumulated = ids[:num_kept], cumulated[:num_kept]
    return ids, cumulated


def _top_ids(row: Logits, k: int) -> NDArray[np.int64]:
    """The k best tokens, best first, ties by lower id.

    A partition of the whole vocabulary costs several times a plain pass over it. Folding the row
    and taking the k-th best of the column maxima gives a threshold that at least k values reach,
    mostly few more.
    """
    num_columns = row.size // _FOLD
    threshold = _NEG_INF
    if k * 4 <= num_columns:
        maxima = row[: num_columns * _FOLD].reshape(_FOLD, num_columns).max(axis=0)
        threshold = np.partition(maxima, num_columns - k)[num_columns - k]
    elif k < row.size:
        threshold = np.partition(row, row.size - k)[row.size - k]
    # A guide may leave fewer than k tokens; the forbidden ones are never worth sorting.
    ids = np.flatnonzero(row >= threshold if threshold > _NEG_INF else row > _NEG_INF)
    return _best_first(row, ids)[:k]


def _best_first(row: Logits, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sort ids by falling value, ties by lower id.

    One integer key of (value, id): a third of the time of a stable argsort on a large set.
    """
    bits = (row[ids] + np.float32(0)).view(np.int32)  # -0.0 + 0.0 is 0.0: they are a tie
    rising = (bits ^ ((bits >> 31) & 0x7FFFFFFF)).astype(np.int64)
    keys = (~rising << 32) | ids
    keys.sort()
    return keys & 0xFFFFFFFF


def _nucleus(weights: Logits, top_p: float) -> Kept:
    """The smallest set of best tokens that holds `top_p` of the weight, ties by lower id, and their
    cumulated weights. Never empty.

    Sorting all candidates is what costs: narrow them around a pivot, as quickselect does, until the
    few are left among which the set ends.
    """
    total = weights.sum(dtype=np.float64)
    missing = top_p * total
    # Tokens below the floor hold less than 1 - top_p even together. Halved against rounding.
    ids = np.flatnonzero(weights >= 0.5 * (1 - top_p) * total / weights.size)
    inside: list[NDArray[np.int64]] = []
    quantile = 0.93  # mostly few tokens hold the mass: first try high, then halve
    while ids.size > _MAX_SORTED:
        values = weights.take(ids)
        sample = np.sort(values[:: ids.size // 64])
        is_better = values >= sample[int(quantile * sample.size)]
        quantile = 0.5
        places = np.flatnonzero(is_better)  # taking places is faster than indexing by bools
        mass = values.take(places).sum(dtype=np.float64)
        if mass < missing:
            inside.append(ids.take(places))
            missing -= mass
            ids = ids.take(np.flatnonzero(~is_better))
        elif places.size == ids.size:
            break  # one value many times
        else:
            ids = ids.take(places)
    ids = _best_first(weights, ids)
    num_kept = int(np.cumsum(weights[ids], dtype=np.float64).searchsorted(missing)) + 1
    kept = np.concatenate([*inside, ids[:num_kept]])
    return kept, np.cumsum(weights[kept], dtype=np.float64)


def _draw_any(weights: Logits, u: float) -> int:
    """One index in proportion to the weights: cumulate blocks, then the one block that is hit."""
    starts = np.arange(0, weights.size, _BLOCK)
    cumulated = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    target = u * cumulated[-1]
    block = _place(cumulated, target)
    below = cumulated[block - 1] if block else 0.0
    inside = np.cumsum(weights[starts[block] : starts[block] + _BLOCK], dtype=np.float64)
    return int(starts[block]) + _place(inside, target - below)


def _place(cumulated: NDArray[np.float64], target: float) -> int:
    """The first index above the target; if rounding leaves none, the last with any weight."""
    place = int(cumulated.searchsorted(target, "right"))
    return min(place, int(cumulated.searchsorted(cumulated[-1])))
