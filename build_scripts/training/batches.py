"""Which examples make up step k: a function of seed and k alone, so a resumed run goes on with the
very batches that it would have had.

Packing (packing.py) pays nothing for unequal lengths, so batches are drawn blindly: no buckets.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compllm.build_scripts.training.examples import Example


class Batches:
    """Epoch after epoch, each a permutation of its own; the last batch of an epoch runs over into
    the next."""

    def __init__(self, examples: Sequence[Example], batch_size: int, seed: int) -> None:
        self._examples = examples
        self._size = batch_size
        self._seed = seed
        self._orders: dict[int, NDArray[np.int64]] = {}  # of the epochs in use

    def num_steps(self, epochs: float) -> int:
        return max(1, round(len(self._examples) * epochs / self._size))

    def __getitem__(self, step: int) -> list[Example]:
        first = step * self._size
        return [self._example(place) for place in range(first, first + self._size)]

    def _example(self, place: int) -> Example:
        epoch, index = divmod(place, len(self._examples))
        if epoch not in self._orders:
            rng = np.random.default_rng((self._seed, epoch))
            self._orders = {
                old: order for old, order in self._orders.items() if old >= epoch - 1
            } | {epoch: rng.permutation(len(self._examples))}
        return self._examples[int(self._orders[epoch][index])]
