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
# Rows of the folded logits in top_ids: keeps both its reductions short at 32k-150k tokens.
_FOLD = 32
_MAX_SORTED = 1024  # candidates of top-p; sorting fewer gains nothing
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: spreads small numbers


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


def noise_key(seed: int, position: int) -> np.uint64:
    """What a draw's noise follows from, with the tokens' ids. position: output tokens before it."""
    of_seed = _mix(np.array([seed], np.uint64))
    return np.uint64(_mix(of_seed ^ np.array([position], np.uint64) * _GOLDEN)[0])


def draw(row: Row, top_k: int, top_p: float, key: np.uint64) -> int:
    """One of the tokens that top-k and top-p leave, in proportion to its probability; top_k 0 and
    top_p 1 keep every token.

    Gumbel-max in its form of an exponential race (Maddison, Tarlow, Minka, 2014): the token with
    the least -log(u) / weight wins, where u is a number in (0, 1) of key and token id. A slightly
    other row then has another winner only where two tokens come in almost at once. With one number
    for the whole row, any rounding moves the place of every token behind it.
    """
    if not top_k and top_p == 1:
        weights = row.weights()
        # Of those below, all together win less than once in 10**12 draws: no noise for them.
        ids = np.flatnonzero(weights >= 1e-12 / weights.size)
        weights = weights.take(ids)
    else:
        ids, _ = keep(row, top_k, top_p)
        weights = row.weights(ids)
    with np.errstate(divide="ignore"):  # a weight may be too small for a float: never first
        return int(ids[(_exponential(ids, key) / weights).argmin()])


def _exponential(ids: NDArray[np.int64], key: np.uint64) -> NDArray[np.float64]:
    """-log(u) for each id."""
    bits = _mix(ids.astype(np.uint64) * _GOLDEN ^ key) >> np.uint64(12)
    numbers = bits.astype(np.float64)
    numbers += 0.5  # exact: there are 52 bits, and u is neither 0 nor 1
    numbers *= 2.0**-52
    np.log(numbers, out=numbers)
    np.negative(numbers, out=numbers)
    return numbers


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea, Flood, 2014), in place: every bit of a value moves
    every bit of the result."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


def keep(row: Row, top_k: int, top_p: float) -> Kept:
    """The tokens that top-k, then top-p leave. Ties keep the lower id; never empty: top_p 0 leaves
    the best token."""
    if not top_k:
        weights = row.weights()
        if top_p < 1:
            return _nucleus(weights, top_p)
        return np.arange(weights.size), np.cumsum(weights, dtype=np.float64)
    ids = top_ids(row.logits, top_k)
    cumulated = np.cumsum(row.weights(ids), dtype=np.float64)
    if top_p < 1:
        num_kept = int(cumulated.searchsorted(top_p * cumulated[-1])) + 1
        ids, cumulated = ids[:num_kept], cumulated[:num_kept]
    return ids, cumulated


def top_ids(row: Logits, k: int) -> NDArray[np.int64]:
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
