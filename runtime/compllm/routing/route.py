"""The expert router: vectors and experts in, routes out. Pure numpy; after embed, before the graph.

A head scores the experts for each vector, the best one answers; below the floor the base does. The
catalogue names a fitted head, or its example questions are the head: the owner of the nearest one
answers. Head and floor belong to one encoder and are refused with another: scores of two encoders
do not compare.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compllm.catalogue import Catalogue
from compllm.errors import RouteError
from compllm.routing.artefact import load
from compllm.routing.embed import Array, Encoder, encode_kept
from compllm.routing.heads import Head, Similarity
from compllm.types import Route


def route(
    queries: Array, vectors: Array, owners: Sequence[str], floor: float, default: str = "base"
) -> tuple[Route, ...]:
    """Pick for each sub-query the expert that owns the vector nearest by cosine similarity.

    queries: float32 [n, dim], unit rows. vectors: float32 [len(owners), dim], unit rows; `owners`
    names the expert of each, in the same order. floor: similarity in [-1, 1] below which `default`
    answers. Ties go to the expert whose first vector is earlier. Raises RouteError when there is no
    vector, the shapes do not fit or a row is not of unit length.
    """
    if not len(owners):
        raise RouteError("no expert to route to: the catalogue has no example questions")
    if queries.ndim != 2 or vectors.shape != (len(owners), queries.shape[-1]):
        raise RouteError(
            f"expected queries [n, dim] and vectors [{len(owners)}, dim], "
            f"saw {list(queries.shape)} and {list(vectors.shape)}"
        )
    return Router(Similarity.of_owners(vectors, owners), floor, default).route(queries)


@dataclass(frozen=True, slots=True)
class Router:
    """A head under one encoder and the floor that belongs to it, ready to route."""

    head: Head | None  # None: a catalogue without experts
    floor: float
    default: str = "base"

    @classmethod
    async def build(cls, catalogue: Catalogue, encoder: Encoder) -> Router:
        """The router that the catalogue names, else the nearest of its example questions, whose
        vectors are kept for the next start. A catalogue without experts routes all to the base.

        Raises RouteError when it belongs to another encoder or to other experts, ConfigError when
        the router's file cannot be read.
        """
        if not catalogue.experts:
            return cls(None, catalogue.router.threshold, catalogue.base.name)
        if catalogue.router.head is not None:
            return await cls.load(catalogue.router.head, catalogue, encoder)
        return await cls.of_examples(catalogue, encoder)

    @classmethod
    async def of_examples(cls, catalogue: Catalogue, encoder: Encoder) -> Router:
        """Similarity with the catalogue's example questions: needs no training. Raises
        RouteError."""
        owners = [
            expert.name
            for expert, texts in zip(catalogue.experts, catalogue.examples, strict=True)
            for _ in texts
        ]
        settings = catalogue.router
        if settings.encoder != encoder.id:
            raise RouteError(
                f"the threshold {settings.threshold} in {catalogue.path} was chosen for "
                f"encoder {settings.encoder!r}, not {encoder.id!r}: calibrate it again"
            )
        texts = [text for texts in catalogue.examples for text in texts]
        vectors = await encode_kept(encoder, texts)
        head = Similarity.of_owners(vectors, owners)
        return cls(head, settings.threshold, catalogue.base.name)

    @classmethod
    async def load(cls, path: Path, catalogue: Catalogue, encoder: Encoder) -> Router:
        """A fitted router. Raises as `build` does."""
        artefact = await asyncio.to_thread(load, path)
        if artefact.encoder != encoder.id:
            raise RouteError(
                f"the router in {path} was fitted on vectors of encoder {artefact.encoder!r}, not "
                f"{encoder.id!r}: fit it again with `compllm train router`"
            )
        names = tuple(expert.name for expert in catalogue.experts)
        if set(names) != set(artefact.head.experts):
            raise RouteError(
                f"the router in {path} knows the experts {', '.join(artefact.head.experts)}, the "
                f"catalogue {catalogue.path} has {', '.join(names)}: fit it again, or remove "
                "'head' from [router] to go by the example questions"
            )
        return cls(artefact.head, artefact.floor, catalogue.base.name)

    def route(self, queries: Array) -> tuple[Route, ...]:
        """A route for each unit row. `similarity` is the head's score of the best expert. Ties go
        to the earlier expert. Raises RouteError."""
        if self.head is None:
            return tuple(Route(self.default, 0.0, is_fallback=True) for _ in queries)
        scores = self.head.scores(queries)
        routes = []
        for row, best in zip(scores, scores.argmax(axis=1), strict=True):
            score = float(row[best])
            is_fallback = score < self.floor
            name = self.default if is_fallback else self.head.experts[best]
            routes.append(Route(name, score, is_fallback))
        return tuple(routes)


@dataclass(frozen=True, slots=True)
class Calibration:
    """A threshold and what it reaches on the questions it was chosen with."""

    threshold: float
    encoder: str
    in_domain_accuracy: float  # routed to their own expert
    out_of_domain_accuracy: float  # left to the base


async def calibrate(
    catalogue: Catalogue,
    encoder: Encoder,
    in_domain: Sequence[tuple[str, str]] = (),
    out_of_domain: Sequence[str] = (),
) -> Calibration:
    """Choose the threshold that maximises the mean of both accuracies; of equal ones the middle.

    in_domain: (question, expert) pairs; by default the catalogue's own examples, each compared with
    all examples but itself. out_of_domain: by default the catalogue's. Raises RouteError when
    either is empty.
    """
    texts = [text for examples in catalogue.examples for text in examples]
    owners = [
        expert.name
        for expert, examples in zip(catalogue.experts, catalogue.examples, strict=True)
        for _ in examples
    ]
    labels = [expert for _, expert in in_domain] or owners
    inside = [text for text, _ in in_domain] or texts
    outside = list(out_of_domain or catalogue.out_of_domain)
    if not texts or not outside:
        raise RouteError("calibration needs example questions of experts and some for no expert")
    vectors = await encoder.encode(texts)
    similarities = (await encoder.encode(inside)) @ vectors.T
    # A question must not be its own nearest example.
    similarities[np.equal.outer(np.array(inside), np.array(texts))] = -1.0
    nearest = similarities.argmax(axis=1)
    is_right = np.array(
        [owners[best] == label for best, label in zip(nearest, labels, strict=True)]
    )
    inside_best = similarities.max(axis=1)
    outside_best = ((await encoder.encode(outside)) @ vectors.T).max(axis=1)

    levels = np.unique(np.concatenate([inside_best, outside_best, [-1.0, 1.0]]))
    floors = (levels[:-1] + levels[1:]) / 2
    kept = ((inside_best >= floors[:, None]) & is_right).mean(axis=1)
    refused = (outside_best < floors[:, None]).mean(axis=1)
    best_floors = np.flatnonzero(np.isclose(kept + refused, (kept + refused).max()))
    chosen = int(best_floors[len(best_floors) // 2])
    threshold = round(float(floors[chosen]), 3)
    return Calibration(threshold, encoder.id, float(kept[chosen]), float(refused[chosen]))
