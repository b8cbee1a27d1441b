"""Which examples make up step k: a function of seed and k alone, so a resumed run continues with
the very batches that it would have had.

Packing (packing.py) pays nothing for unequal lengths, so there are no buckets by length. Groups of
examples that begin alike save work instead: what they share is computed once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compllm.build_scripts.training.examples import Example
from compllm.errors import ConfigError

_STRETCH = 32  # batches within which examples that begin alike are brought together


def repeated(examples: Sequence[Example], times: Mapping[str, int]) -> list[Example]:
    """Each example as often as `times` says of its kind, once where it says nothing.

    Raises ConfigError for a kind that no example has.
    """
    kinds = {example.kind for example in examples}
    if unknown := sorted(times.keys() - kinds):
        raise ConfigError(
            f"no example is of kind {unknown[0]!r}; there are {', '.join(sorted(kinds))}"
        )
    return [each for each in examples for _ in range(times.get(each.kind, 1))]


class Batches:
    """Epoch after epoch, each in an order of its own; the last batch of an epoch runs over into
    the next."""

    def __init__(
        self, examples: Sequence[Example], batch_size: int, seed: int, group_size: int = 1
    ) -> None:
        self._examples = examples
        self._size = batch_size
        self._seed = seed
        self._group = group_size
        self._orders: dict[int, NDArray[np.int64]] = {}  # of the epochs in use

    def num_steps(self, epochs: float) -> int:
        return max(1, round(len(self._examples) * epochs / self._size))

    def __getitem__(self, step: int) -> list[Example]:
        first = step * self._size
        return [self._example(place) for place in range(first, first + self._size)]

    def _example(self, place: int) -> Example:
        epoch, index = divmod(place, len(self._examples))
        if epoch not in self._orders:
            recent = {old: order for old, order in self._orders.items() if old >= epoch - 1}
            self._orders = {**recent, epoch: self._order(epoch)}
        return self._examples[int(self._orders[epoch][index])]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.default_rng((self._seed, epoch))
        order = rng.permutation(len(self._examples))
        if self._group <= 1:
            return order
        grouped: list[int] = []
        stretch = _STRETCH * self._size
        for start in range(0, len(order), stretch):
            alike = sorted(
                order[start : start + stretch].tolist(),
                key=lambda place: self._examples[place].prompt_ids,
            )
            groups = [alike[k : k + self._group] for k in range(0, len(alike), self._group)]
            for which in rng.permutation(len(groups)):
                grouped += groups[which]
        return np.array(grouped)
