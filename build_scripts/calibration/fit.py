"""Examples -> logistic regressions of log-probabilities, and the threshold of a wanted risk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from compllm.build_scripts.calibration.examples import Example
from compllm.confidence import Scale
from compllm.errors import ConfigError

MIN_EXAMPLES = 60
_MIN_EACH = 8  # right and wrong ones: with fewer there is nothing to separate
_FOLDS = 5
_STEP = 0.005  # between thresholds

Probabilities = npt.NDArray[np.float64]
Labels = npt.NDArray[np.bool_]


def fit(examples: Sequence[Example], seed: int = 0) -> tuple[Scale, Probabilities, Labels]:
    """A scale fitted on all; the probabilities are out of fold, for thresholds and figures.

    Raises ConfigError for too few examples, or for examples that are all right or all wrong.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    right = np.array([example.is_right for example in examples], dtype=bool)
    num_right = int(right.sum())
    if len(examples) < MIN_EXAMPLES or min(num_right, len(examples) - num_right) < _MIN_EACH:
        raise ConfigError(
            f"{len(examples)} examples, {num_right} of them right: at least {MIN_EXAMPLES} are "
            f"needed, and {_MIN_EACH} of each: give more questions"
        )
    features = np.array([example.features for example in examples])
    groups = [example.question for example in examples]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=2000))
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    held_out = cross_val_predict(
        model, features, right, groups=groups, cv=folds, method="predict_proba"
    )[:, 1]
    model.fit(features, right)
    scaler, regression = model[0], model[1]
    weights = regression.coef_[0] / scaler.scale_
    bias = float(regression.intercept_[0] - weights @ scaler.mean_)
    return Scale(tuple(map(float, weights)), bias), held_out, right


def choose_threshold(probabilities: Probabilities, right: Labels, risk: float) -> float:
    """The lowest threshold from which on the share of wrong ones among those given stays at most
    `risk`; 1 where none does."""
    for threshold in np.arange(0.0, 1.0, _STEP):
        given = probabilities >= threshold
        if not given.any():
            break
        if (~right[given]).mean() <= risk:
            return round(float(threshold), 4)
    return 1.0


def threshold_of_answers(
    examples: Sequence[Example], probabilities: Probabilities, risk: float
) -> float:
    """The lowest threshold that keeps the risk of whole answers, each as sure as its leaves
    together."""
    answers: dict[str, tuple[float, bool]] = {}
    for example, sure in zip(examples, probabilities, strict=True):
        product, _ = answers.get(example.question, (1.0, False))
        answers[example.question] = (product * float(sure), example.is_answer_right)
    products, right = zip(*answers.values(), strict=True)
    return choose_threshold(np.array(products), np.array(right), risk)


def choose_mark(probabilities: Probabilities, right: Labels, share: float) -> float:
    """The lowest threshold below which at least `share` of the wrong ones lie."""
    wrong = np.sort(probabilities[~right])
    place = min(math.ceil(share * len(wrong)), len(wrong)) - 1
    return round(float(math.floor((wrong[place] + _STEP) / _STEP) * _STEP), 4)


def figures(probabilities: Probabilities, right: Labels) -> dict[str, Any]:
    """How good the probabilities are: AUROC, Brier score, expected calibration error (ten bins of
    equal size), and points of the risk-coverage curve."""
    from sklearn.metrics import brier_score_loss, roc_auc_score

    order = np.argsort(-probabilities)
    wrong = np.cumsum(~right[order]) / np.arange(1, len(right) + 1)
    shares = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0]
    places = [max(round(share * len(right)), 1) - 1 for share in shares]
    bins = np.array_split(np.argsort(probabilities), 10)
    gaps = [len(each) * abs(probabilities[each].mean() - right[each].mean()) for each in bins]
    return {
        "examples": len(right),
        "right": round(float(right.mean()), 4),
        "auroc": round(float(roc_auc_score(right, probabilities)), 4),
        "brier": round(float(brier_score_loss(right, probabilities)), 4),
        "calibration_error": round(float(sum(gaps) / len(right)), 4),
        "risk_at_coverage": {
            str(share): round(float(wrong[place]), 4)
            for share, place in zip(shares, places, strict=True)
        },
    }
