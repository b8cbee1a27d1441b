"""How much work a replay is, and when it arrives: seeded, and the same under every policy.

A node's length depends on the seed, the graph's id and the node's id alone, so that neither the
policy nor the number of graphs changes it.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from compllm.lab.replay.graphs import ReplayGraph

Overhead = Literal["plan+compose", "none"]  # what is written besides the nodes

MAX_TOKENS = 1024  # of a drawn length: a lognormal's tail has no end, an engine's context has


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """New tokens of each node: `mean` of them, or lognormal about it where sigma is not 0."""

    mean: float
    sigma: float = 0.0  # of the logarithm
    seed: int = 0

    def of(self, graph: ReplayGraph) -> dict[int, int]:
        """By node id, each at least 1."""
        return {each.id: self._draw(graph.id, each.id) for each in graph.plan.sub_queries}

    def _draw(self, graph_id: str, node_id: int) -> int:
        if self.sigma == 0:
            return round(self.mean)
        rng = random.Random(f"{self.seed} {graph_id} {node_id}")
        # The lognormal's own mean is exp(mu + sigma^2 / 2).
        drawn = rng.lognormvariate(math.log(self.mean) - self.sigma**2 / 2, self.sigma)
        return max(1, min(MAX_TOKENS, round(drawn)))


def arrivals(rate_qps: float, seed: int) -> Iterator[float]:
    """When the queries of a Poisson process arrive, in seconds from the start."""
    rng = random.Random(f"arrivals {seed}")
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate_qps)
        yield at_s
