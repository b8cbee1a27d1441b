"""The expert router: vectors and experts in, routes out. Pure numpy; after embed, before the graph.

A head scores the experts for each vector, the best one answers; below the floor the base does. The
catalogue names a fitted head, or its example questions are the head: the owner of the nearest one
answers. Head and floor belong to one encoder and are refused with another: scores of two encoders
do not compare.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from compllm.catalogue import Catalogue
from compllm.errors import RouteError
from compllm.routing.artefact import load
from compllm.routing.embed import Array, Encoder, encode_kept
from compllm.routing.heads import Head, Similarity
from compllm.types import Route


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
                f"encoder {settings.encoder!r}, not {encoder.id!r}: choose one for this encoder, "
                "or fit a router with `compllm train router`"
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
