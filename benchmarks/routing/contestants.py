"""Who is compared: a space of vectors and what is fitted on it. Fitted on one half of the subject
questions, our own training questions and the catalogue's examples; tested on the other half.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.routing.metrics import Labels
from compllm.build_scripts.routing.fit import FITS, Topics
from compllm.build_scripts.routing.questions import NEAR_SUBJECTS, Question
from compllm.routing.embed import Array
from compllm.routing.heads import Head


@dataclass(frozen=True, slots=True)
class Sample:
    """Questions as arrays."""

    questions: tuple[Question, ...]
    vectors: Array
    labels: Labels
    topics: Topics

    @classmethod
    def of(
        cls, questions: Sequence[Question], vectors: Mapping[str, Array], experts: Sequence[str]
    ) -> Sample:
        """`vectors` by text."""
        return cls(
            tuple(questions),
            np.stack([vectors[question.text] for question in questions]),
            np.array([experts.index(q.expert) if q.expert else -1 for q in questions]),
            np.array([question.topic for question in questions]),
        )

    @property
    def is_far(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        """In-domain, or clearly different: without the subjects that are neither."""
        return (self.labels >= 0) | ~np.isin(self.topics, list(NEAR_SUBJECTS))


def centred(*samples: Sample) -> tuple[Sample, ...]:
    """All without the mean vector of the first: hidden states of a language model share a large
    common part that hides what tells them apart."""
    mean = samples[0].vectors.mean(axis=0)

    def move(sample: Sample) -> Sample:
        rows = sample.vectors - mean
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
        return replace(sample, vectors=rows.astype(np.float32))

    return tuple(move(sample) for sample in samples)


def fitted(
    sample: Sample, experts: tuple[str, ...], names: Sequence[str] = tuple(FITS)
) -> Iterator[tuple[str, Head]]:
    """Every head, fitted on the sample."""
    for name in names:
        yield name, FITS[name](sample.vectors, sample.labels, sample.topics, experts)


def microseconds(head: Head, vectors: Array, num_routes: int = 300) -> float:
    """Median time of scoring one vector: what routing costs beside the embedding."""
    times = []
    for number in range(num_routes):
        one = vectors[number % len(vectors)][None]
        start_s = time.perf_counter()
        head.scores(one)
        times.append(time.perf_counter() - start_s)
    return float(np.median(times) * 1e6)
