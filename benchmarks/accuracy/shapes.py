"""How much of a plan's graph its question predicts: shapes from a classifier.

People take the same question apart in different ways. Where a classifier of the words, which need
write no sub-query, does no better than one graph for all questions, little can be asked of a
generator. The classifier is compared with the best constant plan. Each question's shape is
predicted by a model that was fitted on the other folds.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy.plans import Graph, edge_f1, f1, score_graph

NUM_FOLDS = 5
_MAX_SHAPES = 14  # the commonest; the others are one class that is never predicted
_INVERSE_REGULARISATION = 0.3


def foretell(questions: Sequence[str], golds: Sequence[Graph], seed: int = 0) -> dict[str, float]:
    """Cross-validated `node count` and `edge F1`, shares of 1, of shapes chosen for each.

    Raises ValueError for too few questions to make folds of.
    """
    words = _words(questions)
    counts = np.array([gold.num_nodes for gold in golds])
    chances, classes = _chances(words, counts, seed)
    predicted = np.asarray(classes)[chances.argmax(axis=1)]
    return {
        "node count": float((predicted == counts).mean()),
        "edge F1": _predicted_edges(words, golds, seed),
    }


def _predicted_edges(words: Any, golds: Sequence[Graph], seed: int) -> float:
    """Of the candidate with the highest expected F1, which may be one that no person drew: where
    two shapes are likely, the edges of both may pay."""
    common = [shape for shape, _ in Counter(golds).most_common(_MAX_SHAPES)]
    labels = np.array([common.index(g) if g in common else len(common) for g in golds])
    chances, classes = _chances(words, labels, seed)
    drawn = [at for at, name in enumerate(classes) if name < len(common)]
    shapes = [common[classes[at]] for at in drawn]
    candidates = [*shapes, *(_joined(a, b) for a in shapes[:4] for b in shapes[:4] if a != b)]
    gains = np.array([[_overlap(ours, gold) for gold in shapes] for ours in candidates])
    best = (chances[:, drawn] @ gains.T).argmax(axis=1)
    return edge_f1([score_graph(candidates[at], g) for at, g in zip(best, golds, strict=True)])


def _joined(first: Graph, second: Graph) -> Graph:
    return Graph(max(first.num_nodes, second.num_nodes), first.edges | second.edges)


def _overlap(ours: Graph, gold: Graph) -> float:
    return f1(len(ours.edges & gold.edges), len(ours.edges), len(gold.edges))


def _words(questions: Sequence[str]) -> Any:
    """Sparse [questions, features]: words, pairs and triples, marks among them, and lengths."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    grams = TfidfVectorizer(
        ngram_range=(1, 3), min_df=2, sublinear_tf=True, token_pattern=r"(?u)\b\w+\b|[?,']"
    ).fit_transform(questions)
    lengths = [[len(text.split()), text.count(","), len(text)] for text in questions]
    return hstack([grams, np.array(lengths) / 10]).tocsr()


def _chances(
    words: Any, labels: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.float64], list[int]]:
    """[questions, classes] of questions that the model has not seen, and the classes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    model = LogisticRegression(C=_INVERSE_REGULARISATION, max_iter=200)
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class of fewer members than folds is in some folds alone; nothing is wrong with that.
        warnings.simplefilter("ignore")
        predict: Callable[..., NDArray[np.float64]] = cross_val_predict
        chances = predict(model, words, labels, cv=folds, method="predict_proba")
    return chances, sorted(set(labels.tolist()))
