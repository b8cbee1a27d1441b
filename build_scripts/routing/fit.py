"""Vectors and labels to heads that the runtime runs: class means, prototypes, softmax, neighbours.

scikit-learn fits, numpy routes: what is learned leaves here as plain arrays. The default head
averages two softmax layers: one separates every topic from every other and adds up an expert's
topics, the other keeps the experts and "none" apart with all experts weighing the same. The first
knows better what belongs to no expert, the second which expert it is; together they beat both.

Generated questions lie elsewhere than those that people wrote for the same expert. So they are
clusters and classes of their own: thrown together, they move the borders between people's
questions (`eval_router.py --parts together` measures it).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from compllm.build_scripts.routing.questions import GENERATED
from compllm.routing.embed import Array
from compllm.routing.heads import Head, Layer, Neighbours, Similarity, Softmax

Labels = npt.NDArray[np.int64]  # position of the expert, -1 for none
Topics = npt.NDArray[np.str_]
Fit = Callable[[Array, Labels, Topics, tuple[str, ...]], Head]

_MAX_ITERATIONS = 1000


def class_means(vectors: Array, labels: Labels, topics: Topics, experts: tuple[str, ...]) -> Head:
    """One vector an expert, the mean of its questions: the paper's router."""
    means = [vectors[labels == place].mean(axis=0) for place in range(len(experts))]
    return Similarity(experts, _unit(np.stack(means)), np.arange(len(experts)))


def prototypes(
    vectors: Array,
    labels: Labels,
    topics: Topics,
    experts: tuple[str, ...],
    *,
    num_each: int = 16,
    num_generated: int = 8,
    seed: int = 0,
) -> Head:
    """Several vectors an expert, the centres of its questions' clusters: still plain similarity,
    but a domain may lie in several places."""
    from sklearn.cluster import KMeans

    is_generated = np.char.startswith(topics, GENERATED)
    centres, owners = [], []
    for place in range(len(experts)):
        for origin, num in ((~is_generated, num_each), (is_generated, num_generated)):
            mine = vectors[origin & (labels == place)]
            if len(mine):
                means = KMeans(min(num, len(mine)), n_init=4, random_state=seed).fit(mine)
                centres.append(_unit(means.cluster_centers_))
                owners += [place] * len(means.cluster_centers_)
    return Similarity(experts, np.concatenate(centres), np.array(owners))


def nearest_questions(
    vectors: Array,
    labels: Labels,
    topics: Topics,
    experts: tuple[str, ...],
    *,
    num_neighbours: int = 20,
    sharpness: float = 20.0,
) -> Head:
    """All questions, those for no expert among them."""
    return Neighbours(experts, vectors, labels, num_neighbours, sharpness)


def logistic_experts(
    vectors: Array, labels: Labels, topics: Topics, experts: tuple[str, ...], *, c: float = 1.0
) -> Head:
    """Logistic regression over the experts and none, each weighing the same."""
    return Softmax(
        experts, (_softmax(vectors, _families(labels, topics), labels, c, is_balanced=True),)
    )


def logistic_topics(
    vectors: Array, labels: Labels, topics: Topics, experts: tuple[str, ...], *, c: float = 10.0
) -> Head:
    """Logistic regression over all topics; an expert's probability is its topics' sum."""
    return Softmax(experts, (_softmax(vectors, topics, labels, c, is_balanced=False),))


def logistic(vectors: Array, labels: Labels, topics: Topics, experts: tuple[str, ...]) -> Head:
    """Both of the above: the default."""
    layers = (
        _softmax(vectors, topics, labels, 10.0, is_balanced=False),
        _softmax(vectors, _families(labels, topics), labels, 1.0, is_balanced=True),
    )
    return Softmax(experts, layers)


FITS: Mapping[str, Fit] = {
    "means": class_means,
    "similarity": prototypes,
    "neighbours": nearest_questions,
    "logistic-experts": logistic_experts,
    "logistic-topics": logistic_topics,
    "logistic": logistic,
}
PLAIN = ("means", "similarity")  # by cosine alone, without questions for no expert


def out_of_fold(
    fit: Fit,
    vectors: Array,
    labels: Labels,
    topics: Topics,
    experts: tuple[str, ...],
    *,
    groups: Sequence[str],
    num_folds: int = 5,
    seed: int = 0,
) -> Array:
    """Scores of every question by a head that was fitted without it; equal groups (texts) stay in
    one fold."""
    places = {text: number for number, text in enumerate(dict.fromkeys(groups))}
    folds = np.random.default_rng(seed).permutation(len(places)) % num_folds
    fold_of = folds[[places[text] for text in groups]]
    scores = np.zeros((len(vectors), len(experts)), np.float32)
    for fold in range(num_folds):
        inside = fold_of == fold
        head = fit(vectors[~inside], labels[~inside], topics[~inside], experts)
        scores[inside] = head.scores(vectors[inside])
    return scores


def _families(labels: Labels, topics: Topics) -> Topics:
    """Classes of the experts' layer: an expert (or none), apart from its generated questions."""
    return np.where(np.char.startswith(topics, GENERATED), topics, labels.astype(str))


def _softmax(
    vectors: Array, classes: npt.NDArray[np.generic], labels: Labels, c: float, *, is_balanced: bool
) -> Layer:
    """Weights for one class after another; a class belongs to the expert of its questions."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(
        C=c, max_iter=_MAX_ITERATIONS, class_weight="balanced" if is_balanced else None
    ).fit(vectors, classes)
    weights, bias = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # scikit-learn keeps one row: the difference of both
        weights = np.concatenate([np.zeros_like(weights), weights])
        bias = np.concatenate([np.zeros_like(bias), bias])
    groups = [int(labels[classes == each][0]) for each in model.classes_]
    return Layer(
        np.ascontiguousarray(weights.T, np.float32), bias.astype(np.float32), np.array(groups)
    )


def _unit(rows: Array) -> Array:
    unit: Array = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit.astype(np.float32)
