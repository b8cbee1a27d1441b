"""Heads of the router: unit vectors in, a score for each expert out. Pure numpy.

`Similarity` is the paper's: cosine with the nearest of an expert's vectors. The other two are
fitted (`build_scripts/train_router.py`) and score an expert by the probability that it is the right
one; what they leave over is the probability of no expert. Rows that are no unit vectors are
refused: a score of something else would look like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from compllm.errors import RouteError
from compllm.routing.embed import Array

Groups = npt.NDArray[np.int64]  # of each class or vector: its expert's position, -1 for none
_UNIT_TOLERANCE = 1e-3


class Head(Protocol):
    """Scores experts. All scores of one head compare with each other, and with no other's."""

    @property
    def experts(self) -> tuple[str, ...]: ...

    def scores(self, queries: Array) -> Array:
        """float32 [n, len(experts)] for float32 [n, dim], unit rows. Raises RouteError."""
        ...


@dataclass(frozen=True, slots=True)
class Similarity:
    """Cosine in [-1, 1] with the nearest vector of each expert."""

    experts: tuple[str, ...]
    vectors: Array  # [m, dim], unit rows
    owners: Groups  # [m], positions in `experts`

    @classmethod
    def of_owners(cls, vectors: Array, owners: Sequence[str]) -> Similarity:
        """`owners` names the expert of each vector; experts stand in order of appearance."""
        experts = tuple(dict.fromkeys(owners))
        return cls(experts, vectors, np.array([experts.index(each) for each in owners], np.int64))

    def scores(self, queries: Array) -> Array:
        check_rows(queries, self.vectors.shape[-1], "queries")
        check_rows(self.vectors, self.vectors.shape[-1], "vectors")
        similarities = np.clip(_products(queries, self.vectors.T), -1, 1)
        best = np.full((len(queries), len(self.experts)), -1, np.float32)
        for place in range(len(self.experts)):
            mine = similarities[:, self.owners == place]
            best[:, place] = mine.max(axis=1, initial=-1)
        return best


@dataclass(frozen=True, slots=True)
class Layer:
    """A softmax over classes, each of which belongs to an expert or to none."""

    weights: Array  # [dim, classes]
    bias: Array  # [classes]
    groups: Groups  # [classes]


@dataclass(frozen=True, slots=True)
class Softmax:
    """Probability in [0, 1] of each expert: its classes' sum, averaged over the layers."""

    experts: tuple[str, ...]
    layers: tuple[Layer, ...]
    _members: tuple[Array, ...] = field(init=False, repr=False, compare=False)  # of each layer

    def __post_init__(self) -> None:
        members = (_membership(layer.groups, len(self.experts)) for layer in self.layers)
        object.__setattr__(self, "_members", tuple(members))

    def scores(self, queries: Array) -> Array:
        check_rows(queries, self.layers[0].weights.shape[0], "queries")
        total = np.zeros((len(queries), len(self.experts)), np.float32)
        for layer, members in zip(self.layers, self._members, strict=True):
            logits = _products(queries, layer.weights) + layer.bias
            powers = np.exp(logits - logits.max(axis=1, keepdims=True))
            total += (powers @ members) / powers.sum(axis=1, keepdims=True)
        return total / len(self.layers)


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Probability in [0, 1] of each expert: its share among the nearest questions, near ones
    counting more (exp(sharpness * cosine))."""

    experts: tuple[str, ...]
    vectors: Array  # [m, dim], unit rows
    owners: Groups  # [m]; -1 is a question for no expert
    num_neighbours: int
    sharpness: float

    def scores(self, queries: Array) -> Array:
        check_rows(queries, self.vectors.shape[-1], "queries")
        similarities = _products(queries, self.vectors.T)
        k = min(self.num_neighbours, similarities.shape[1])
        # A stable order: of equally near questions the earlier one counts.
        nearest = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
        near = np.take_along_axis(similarities, nearest, axis=1)
        votes = np.exp(self.sharpness * (near - near.max(axis=1, keepdims=True)))
        votes /= votes.sum(axis=1, keepdims=True)
        members = _membership(self.owners, len(self.experts))[nearest]
        found: Array = np.einsum("nk,nke->ne", votes, members).astype(np.float32)
        return found


def check_rows(rows: Array, dim: int, name: str) -> None:
    """Raises RouteError for rows of another width, or not of unit length."""
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise RouteError(f"expected {name} [n, {dim}], saw {list(rows.shape)}")
    lengths = np.sqrt(np.einsum("nd,nd->n", rows, rows))
    # Written so that a NaN is off as well.
    off = np.flatnonzero(~(np.abs(lengths - 1) <= _UNIT_TOLERANCE))
    if off.size:
        raise RouteError(f"row {off[0]} of {name} has length {lengths[off[0]]:.4g}, expected 1")


def _products(queries: Array, columns: Array) -> Array:
    """queries @ columns, for one query without BLAS: that would wake a thread which then spins for
    tens of milliseconds on the core that the encoder and the engine want next."""
    if len(queries) != 1:
        return queries @ columns
    found: Array = np.einsum("nd,dm->nm", queries, columns)
    return found


def _membership(groups: Groups, num_experts: int) -> Array:
    """0/1 float32 [len(groups), num_experts]; rows of -1 are zero."""
    members: Array = (groups[:, None] == np.arange(num_experts)).astype(np.float32)
    return members
