"""Vectors of labelled questions -> the gate's head, and floors that keep a wanted risk.

The classes are the kinds of questions, not the two answers: -P, -All and human questions need a
plan for different reasons and lie in different places. Two classes in their stead separate our own
held-out questions with an AUROC of 0.90, the kinds with 0.98.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from compllm.build_scripts.gating.questions import Labelled
from compllm.routing.embed import Array
from compllm.routing.gate import DIRECT
from compllm.routing.heads import Layer, Softmax

RISKS = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3)
SHARE_DIRECT = 0.5  # of the questions that the risk is for; a choice, the sets' shares mean nothing
_C = 10.0  # as the router's topics
_MAX_ITERATIONS = 2000
_NUM_FLOORS = 400
_MIN_SENT = 0.3  # of the direct questions: with fewer, one wrong one would end the search

Labels = npt.NDArray[np.bool_]
Scores = npt.NDArray[np.floating[Any]]


def fit(questions: Sequence[Labelled], vectors: Array) -> Softmax:
    """Logistic regression over (source, needs a plan); the direct ones' probabilities add up."""
    from sklearn.linear_model import LogisticRegression

    classes = np.array([f"{question.source}/{question.is_direct}" for question in questions])
    model = LogisticRegression(C=_C, max_iter=_MAX_ITERATIONS).fit(vectors, classes)
    weights, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps one row: the difference of both
        weights, bias = np.concatenate([0 * weights, weights]), np.concatenate([0 * bias, bias])
    groups = [0 if str(each).endswith("/True") else -1 for each in model.classes_]
    layer = Layer(
        np.ascontiguousarray(weights.T, np.float32), bias.astype(np.float32), np.array(groups)
    )
    return Softmax((DIRECT,), (layer,))


def choose_floors(
    scores: Scores, is_direct: Labels, *, delta: float = 0.05
) -> tuple[tuple[float, float], ...]:
    """(risk, floor) of each wanted risk that can be kept: the loosest floor down to which an upper
    bound (Clopper and Pearson 1934, at 1 - delta) of the wrong among those sent stays below it.

    scores: of questions that the head was not fitted on.
    """
    found = []
    for risk in RISKS:
        kept = None
        for floor, bound in _bounds(scores, is_direct, delta):
            if bound > risk:
                break
            kept = floor
        if kept is not None:
            found.append((risk, kept))
    return tuple(found)


def _bounds(scores: Scores, is_direct: Labels, delta: float) -> Iterator[tuple[float, float]]:
    """(floor, bound), from the strictest floor that sends enough down."""
    from scipy.stats import beta

    direct, others = scores[is_direct], scores[~is_direct]
    floors = np.unique(np.quantile(direct, np.linspace(0, 1 - _MIN_SENT, _NUM_FLOORS)))[::-1]
    for floor in np.floor(floors.astype(float) * 1e4) / 1e4:
        num_wrong = int((others >= floor).sum())
        worst = beta.ppf(1 - delta, num_wrong + 1, len(others) - num_wrong)
        worst = 1.0 if num_wrong == len(others) else float(worst)
        yield float(floor), share_wrong(float((direct >= floor).mean()), worst)


def share_wrong(sent: float, wrongly_sent: float) -> float:
    """Of all that is sent straight on, from the shares of either kind that are."""
    wrong = (1 - SHARE_DIRECT) * wrongly_sent
    return wrong / max(wrong + SHARE_DIRECT * sent, 1e-12)
