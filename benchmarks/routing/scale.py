"""3, 4, 8, 16 and 32 experts: which router still finds the right one?

The first three are chemistry, biology and mathematics, the others are subjects of the file in a
seeded order, so that each number of experts adds to the one before. Several orders are drawn; a
question's value is its mean over the draws it takes part in, and intervals are over questions.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.intervals import Estimate, mean
from benchmarks.routing.contestants import Sample
from benchmarks.routing.metrics import auroc
from benchmarks.store import ResultStore, content_hash
from compllm.build_scripts.routing.fit import FITS
from compllm.build_scripts.routing.questions import SUBJECTS

COUNTS = (3, 4, 8, 16, 32)


def draw_experts(topics: Sequence[str], count: int, draw: int) -> tuple[str, ...]:
    """Names of the experts: the three domains, then subjects."""
    domains = tuple(dict.fromkeys(SUBJECTS.values()))
    others = sorted(set(topics) - set(SUBJECTS))
    random.Random(draw).shuffle(others)
    return (*domains, *others)[:count]


def relabel(sample: Sample, experts: tuple[str, ...]) -> Sample:
    """The sample with these experts instead of the catalogue's."""
    owner = [SUBJECTS.get(topic, topic) for topic in sample.topics]
    labels = [experts.index(name) if name in experts else -1 for name in owner]
    return replace(sample, labels=np.array(labels))


def run_cell(fit_on: Sample, test_on: Sample, name: str, count: int, draw: int) -> dict[str, Any]:
    """One head at one number of experts: which test questions it got right, and its AUROC."""
    experts = draw_experts(fit_on.topics.tolist(), count, draw)
    ours, theirs = relabel(fit_on, experts), relabel(test_on, experts)
    head = FITS[name](ours.vectors, ours.labels, ours.topics, experts)
    scores = head.scores(theirs.vectors)
    inside = theirs.labels >= 0
    best = scores.max(axis=1)
    return {
        "places": np.flatnonzero(inside).tolist(),
        "right": (scores.argmax(axis=1) == theirs.labels)[inside].astype(int).tolist(),
        "auroc": auroc(best[inside], best[~inside]),
    }


def run_scale(
    fit_on: Sample,
    test_on: Sample,
    names: Sequence[str],
    num_draws: int,
    store: ResultStore,
    tick: Callable[[], None] = lambda: None,
) -> dict[tuple[str, int], tuple[dict[int, float], float]]:
    """(name, number of experts) -> (share of draws each question was right in, mean AUROC)."""
    data = content_hash([q.text for q in (*fit_on.questions, *test_on.questions)])
    found = {}
    for name in names:
        for count in COUNTS:
            hits, areas = defaultdict[int, list[int]](list), []
            for draw in range(num_draws if count > len(set(SUBJECTS.values())) else 1):
                key = f"{name}-{count}-{draw}"
                cell = store.get(key, data)
                if cell is None:
                    cell = run_cell(fit_on, test_on, name, count, draw)
                    store.put(key, data, cell)
                for place, right in zip(cell["places"], cell["right"], strict=True):
                    hits[place].append(right)
                areas.append(cell["auroc"])
                tick()
            shares = {place: float(np.mean(values)) for place, values in hits.items()}
            found[name, count] = (shares, float(np.mean(areas)))
    return found


def difference(ours: dict[int, float], theirs: dict[int, float], seed: int = 0) -> Estimate:
    """Paired, over the questions of both."""
    return mean([ours[place] - theirs[place] for place in sorted(ours)], seed)
