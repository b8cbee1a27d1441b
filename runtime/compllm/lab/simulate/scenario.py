"""The keys of a scenario file of `compllm simulate`: a load, the engines and what is compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from compllm.lab.engine_profile import BUILT_IN
from compllm.lab.replay.workload import MAX_TOKENS
from compllm.lab.scenario import Scenario, key
from compllm.lab.simulate.workload import Schedule, Shape
from compllm.scheduling.admission import PolicyName
from compllm.types import ComposePolicy

_MOST = 65_536  # tokens of a response, requests in flight


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulateScenario(Scenario):
    """A load of queries on engines of a profile."""

    # No engine runs here, so a response may be longer than a replay's.
    tokens_per_node: int = key("Tokens of each node's response.", 32, between=(1, _MOST))
    answer_tokens: int = key("Tokens of a composed answer.", 64, between=(1, _MOST))
    rate_qps: float = key(
        "Queries a second; they arrive at random.", between=(1e-4, 1e9), example=2.0
    )
    num_queries: int | None = key(
        "Queries that arrive; default: each graph once.", None, between=(1, 2**31), example=1000
    )
    engine_profile: Path = key(
        "The engine's speed: a file of `compllm simulate --fit`, or the hypothetical 'gpu-like'.",
        example="gpu-like",
    )
    num_engines: int = key("Engines that serve the load.", 1, between=(1, 4096))
    max_in_flight: int | None = key(
        "Requests at an engine at a time; default: as many as it batches.",
        None,
        between=(1, _MOST),
        example=8,
    )
    policies: tuple[PolicyName, ...] = key(
        "Orders of waiting requests, which are compared.", get_args(PolicyName)
    )
    schedule: Schedule = key(
        "Which sub-queries may run together: dataflow, levels, sequential.", "dataflow"
    )
    compose: ComposePolicy = key(
        "Which answers a model writes: always, never; auto: those of several sub-queries.",
        "always",
    )
    p95_ms: float | None = key(
        "Also find how many engines keep the 95th percentile of latency within this.",
        None,
        between=(1e-3, 1e12),
        example=2000.0,
    )

    @property
    def shape(self) -> Shape:
        return Shape(self.overhead, self.schedule, self.compose, self.answer_tokens)

    @property
    def profile_name(self) -> str:
        """As `load_profile` takes it."""
        name = self.engine_profile.name
        return name if name in BUILT_IN else str(self.engine_profile)

    def problem(self) -> str | None:
        if self.tokens_sigma > 0 and self.tokens_per_node > MAX_TOKENS:
            return (
                f"tokens_per_node is {self.tokens_per_node}: with tokens_sigma it is at most "
                f"{MAX_TOKENS}"
            )
        return None
