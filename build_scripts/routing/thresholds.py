"""A floor for a wanted risk: Learn then Test (Angelopoulos et al. 2021, arXiv 2110.01052).

Risk is the share of questions sent to an expert that should not have gone there: to a wrong expert,
or to any where none is right. Floors are tried one after another, each looser than the one before;
they are kept while an upper confidence bound of the risk (Clopper and Pearson 1934) stays below the
wanted one, and the first that fails ends the search. So with probability 1 - delta over the
validation questions, the true risk is below the wanted one - for questions like them, in the mix
that `share_inside` states. Where the first fails, no such promise is made and the floor is the one
that serves both kinds of questions best.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compllm.routing.embed import Array

Labels = npt.NDArray[np.int64]
_NUM_FLOORS = 200
# Where the search starts: of a floor that routes less than this nothing can be proved or used.
_MIN_COVERAGE = 0.25


@dataclass(frozen=True, slots=True)
class Choice:
    """A floor and what the validation questions say of it; shares in [0, 1]."""

    floor: float
    risk: float  # observed
    risk_bound: float  # upper bound, at confidence 1 - delta
    coverage: float  # in-domain questions that reach an expert
    right: float  # in-domain questions that reach their own expert
    refused: float  # questions for no expert that are left to the base
    is_met: bool  # False: the wanted risk cannot be kept


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

    curve = risk_coverage(scores, labels, share_inside)
    num_inside, num_outside = int((labels >= 0).sum()), int((labels < 0).sum())
    first = int(np.searchsorted(curve.coverage, _MIN_COVERAGE))
    bounds = np.ones(len(curve.floors))
    kept: int | None = None
    for place in range(first, len(curve.floors)):
        wrong_inside = round((curve.coverage[place] - curve.right[place]) * num_inside)
        accepted = round(curve.accepted[place] * num_outside)
        # Both kinds of mistake at once, each at half of delta.
        worst_inside = _upper_bound(wrong_inside, num_inside, delta / 2)
        worst_outside = _upper_bound(accepted, num_outside, delta / 2)
        wrong = share_inside * worst_inside + (1 - share_inside) * worst_outside
        bounds[place] = wrong / (wrong + share_inside * curve.right[place])
        if bounds[place] > risk:
            break
        kept = place
    chosen = kept if kept is not None else int((curve.right - curve.accepted).argmax())
    return Choice(
        round(float(curve.floors[chosen]), 4),
        float(curve.risk[chosen]),
        float(bounds[chosen]),
        float(curve.coverage[chosen]),
        float(curve.right[chosen]),
        float(1 - curve.accepted[chosen]),
        kept is not None,
    )


def _upper_bound(num_bad: int, num: int, delta: float) -> float:
    """Of a share, when num_bad of num were seen; exceeded with probability delta at most."""
    from scipy.stats import beta

    return 1.0 if num_bad >= num else float(beta.ppf(1 - delta, num_bad + 1, num - num_bad))


def at_floor(
    scores: Array, labels: Labels, floor: float, share_inside: float = 0.5
) -> dict[str, float]:
    """What a floor does to these questions: shares in [0, 1]."""
    best, is_right = scores.max(axis=1), scores.argmax(axis=1) == labels
    inside, routed = labels >= 0, best >= floor
    coverage = float(routed[inside].mean())
    right = float((routed & is_right)[inside].mean())
    accepted = float(routed[~inside].mean())
    wrong = share_inside * (coverage - right) + (1 - share_inside) * accepted
    risk = wrong / max(wrong + share_inside * right, 1e-12)
    return {"risk": risk, "coverage": coverage, "right": right, "refused": 1 - accepted}


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
