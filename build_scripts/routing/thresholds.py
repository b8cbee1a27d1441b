"""A floor for a wanted risk: Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052).

Risk is the share of questions sent to an expert that should not have gone there: to a wrong expert,
or to any where none is right. Floors are tried from the strictest on; each is kept while an upper
confidence bound of its risk (Clopper and Pearson 1934) stays below the wanted one, and the first
that fails ends the search. So with probability 1 - delta over the validation questions, the true
risk is below the wanted one - for questions like them, in the mix that `share_inside` states.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compllm.embed import Array

Labels = npt.NDArray[np.int64]
_NUM_FLOORS = 200


@dataclass(frozen=True, slots=True)
class Choice:
    """A floor and what the validation questions say of it; shares in [0, 1]."""

    floor: float
    risk: float  # observed
    risk_bound: float  # upper bound, at confidence 1 - delta
    coverage: float  # in-domain questions that reach an expert
    right: float  # in-domain questions that reach their own expert
    refused: float  # questions for no expert that are left to the base
    is_met: bool  # False: no floor keeps the wanted risk, this is the strictest


@dataclass(frozen=True, slots=True)
class Curve:
    """What each floor costs and keeps, strictest first."""

    floors: npt.NDArray[np.float64]
    coverage: npt.NDArray[np.float64]  # in-domain questions routed
    right: npt.NDArray[np.float64]
    accepted: npt.NDArray[np.float64]  # questions for no expert that were routed all the same
    risk: npt.NDArray[np.float64]


def choose_floor(
    scores: Array,
    labels: Labels,
    risk: float = 0.1,
    *,
    delta: float = 0.05,
    share_inside: float = 0.5,
) -> Choice:
    """scores: [n, experts] of questions the head was not fitted on; labels: -1 for no expert."""
    from scipy.stats import beta

    curve = risk_coverage(scores, labels, share_inside)
    best, is_right = scores.max(axis=1), scores.argmax(axis=1) == labels
    inside = labels >= 0
    num_inside, num_outside = int(inside.sum()), int((~inside).sum())
    met = 0
    bounds = np.ones(len(curve.floors))
    for place, floor in enumerate(curve.floors):
        routed = best >= floor
        wrong_inside = int((routed & inside & ~is_right).sum())
        accepted = int((routed & ~inside).sum())
        # Both kinds of mistake at once: each bound at half of delta, the coverage at its value.
        bad_inside = beta.ppf(1 - delta / 2, wrong_inside + 1, num_inside - wrong_inside)
        bad_outside = beta.ppf(1 - delta / 2, accepted + 1, num_outside - accepted)
        wrong = share_inside * bad_inside + (1 - share_inside) * bad_outside
        right = share_inside * (routed & is_right).sum() / num_inside
        bounds[place] = np.nan_to_num(wrong / (wrong + right), nan=1.0)
        # The very strictest floors route so little that nothing can be proved of them.
        if bounds[place] > risk and met:
            break
        if bounds[place] <= risk:
            met = place
    is_met = bool(bounds[met] <= risk)
    return Choice(
        round(float(curve.floors[met]), 4),
        float(curve.risk[met]),
        float(bounds[met]),
        float(curve.coverage[met]),
        float(curve.right[met]),
        float(1 - curve.accepted[met]),
        is_met,
    )


def risk_coverage(scores: Array, labels: Labels, share_inside: float = 0.5) -> Curve:
    """The abstention curve, over quantiles of the scores."""
    best, is_right = scores.max(axis=1), scores.argmax(axis=1) == labels
    inside = labels >= 0
    floors = np.unique(np.quantile(best[inside], np.linspace(0, 1, _NUM_FLOORS)))[::-1]
    # The floor lies just below the score, so that this very question is routed.
    floors = np.floor(floors.astype(float) * 1e4) / 1e4
    floors = np.unique(floors)[::-1]
    routed = best[None, :] >= floors[:, None]
    coverage = routed[:, inside].mean(axis=1)
    right = (routed & is_right)[:, inside].mean(axis=1)
    accepted = routed[:, ~inside].mean(axis=1) if (~inside).any() else np.zeros(len(floors))
    wrong = share_inside * (coverage - right) + (1 - share_inside) * accepted
    total = wrong + share_inside * right
    return Curve(floors, coverage, right, accepted, wrong / np.maximum(total, 1e-12))
