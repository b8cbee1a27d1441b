"""The expert router: vectors and experts in, routes out. Pure numpy; after embed, before the graph.

An expert owns one or more vectors (those of its example questions in the catalogue). A sub-query
goes to the owner of the nearest one; below the floor the base answers. A floor is calibrated with
one encoder and refused with another: similarities of two encoders do not compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from compllm.catalogue import Catalogue
from compllm.embed import Array, Encoder, encode_kept
from compllm.errors import RouteError
from compllm.types import Route

_UNIT_TOLERANCE = 1e-3


def route(
    queries: Array, vectors: Array, owners: Sequence[str], floor: float, default: str = "base"
) -> tuple[Route, ...]:
    """Pick for each sub-query the expert that owns the vector nearest by cosine similarity.

    queries: float32 [n, dim], unit rows. vectors: float32 [len(owners), dim], unit rows; `owners`
    names the expert of each, in the same order. floor: similarity in [-1, 1] below which `default`
    answers. Ties go to the earlier vector. Raises RouteError when there is no vector, the shapes do
    not fit or a row is not of unit length.
    """
    if not len(owners):
        raise RouteError("no expert to route to: the catalogue has no example questions")
    if queries.ndim != 2 or vectors.shape != (len(owners), queries.shape[-1]):
        raise RouteError(
            f"expected queries [n, dim] and vectors [{len(owners)}, dim], "
            f"saw {list(queries.shape)} and {list(vectors.shape)}"
        )
    for name, rows in (("queries", queries), ("vectors", vectors)):
        lengths = np.linalg.norm(rows, axis=1)
        # Written so that a NaN is off as well.
        off = np.flatnonzero(~(np.abs(lengths - 1) <= _UNIT_TOLERANCE))
        if off.size:
            raise RouteError(f"row {off[0]} of {name} has length {lengths[off[0]]:.4g}, expected 1")
    similarities = queries @ vectors.T
    nearest = similarities.argmax(axis=1)
    routes = []
    for row, best in enumerate(nearest):
        similarity = float(np.clip(similarities[row, best], -1, 1))
        is_fallback = similarity < floor
        routes.append(Route(default if is_fallback else owners[best], similarity, is_fallback))
    return tuple(routes)


@dataclass(frozen=True, slots=True)
class Router:
    """The vectors of a catalogue's experts under one encoder, ready to route."""

    vectors: Array
    owners: tuple[str, ...]
    floor: float
    default: str = "base"

    @classmethod
    async def build(cls, catalogue: Catalogue, encoder: Encoder) -> Router:
        """Embed the catalogue's example questions, or take their vectors from an earlier start. A
        catalogue without experts routes all to the base.

        Raises RouteError when its threshold was calibrated with another encoder.
        """
        owners = tuple(
            expert.name
            for expert, texts in zip(catalogue.experts, catalogue.examples, strict=True)
            for _ in texts
        )
        if owners and catalogue.router.encoder != encoder.id:
            raise RouteError(
                f"the threshold {catalogue.router.threshold} in {catalogue.path} was chosen for "
                f"encoder {catalogue.router.encoder!r}, not {encoder.id!r}: calibrate it again"
            )
        texts = [text for texts in catalogue.examples for text in texts]
        vectors = await encode_kept(encoder, texts)
        return cls(vectors, owners, catalogue.router.threshold, catalogue.base.name)

    def route(self, queries: Array) -> tuple[Route, ...]:
        """A route for each unit row."""
        if not self.owners:
            return tuple(Route(self.default, 0.0, is_fallback=True) for _ in queries)
        return route(queries, self.vectors, self.owners, self.floor, self.default)


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
