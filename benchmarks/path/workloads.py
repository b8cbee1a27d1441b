"""Seeded shapes of work that the benchmarks share."""

from __future__ import annotations

import random

Parents = list[tuple[int, ...]]  # of each node, by id, rising from 0


def random_dag(num_nodes: int, rng: random.Random) -> Parents:
    """Each node depends on up to three earlier ones, drawn alike: 1.5 on average, some on none."""
    return [
        tuple(rng.sample(range(node), min(node, rng.randrange(4)))) for node in range(num_nodes)
    ]
