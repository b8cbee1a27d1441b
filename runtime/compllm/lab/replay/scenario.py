"""The keys of a scenario file of `compllm replay`: a load, and how the real engine gets it."""

from __future__ import annotations

from dataclasses import dataclass

from compllm.lab.replay.drive import ReplaySettings
from compllm.lab.replay.policies import PolicyName
from compllm.lab.scenario import Scenario, key
from compllm.scheduling.admission import PolicyName as AdmissionPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayScenario(Scenario):
    """Graphs that run on the real engine."""

    policy: PolicyName = key(
        "When a node starts: dataflow (the runtime's way), levels, sequential, polling.", "dataflow"
    )
    rate_qps: float | None = key(
        "Queries a second, which arrive at random; default: one at a time.",
        None,
        between=(1e-4, 1e9),
        example=2.0,
    )
    concurrency: int | None = key(
        "Queries in flight at a time, where no rate is given; default: 1.",
        None,
        between=(1, 2**16),
        example=4,
    )
    admission: AdmissionPolicy | None = key(
        "Order of waiting requests: oldest_query_first (default), fifo, deepest_first, "
        "least_remaining_work.",
        None,
        example="fifo",
    )
    is_shared: bool = key(
        "One request for identical sub-queries of live queries: less work for some policies.", False
    )
    salt: str = key("Before every question, so that no earlier run's prefix is reused.", "")
    metrics_url: str | None = key(
        "Of the server's metrics; default: those of `compllm up`.",
        None,
        example="http://127.0.0.1:8002/metrics",
    )

    def problem(self) -> str | None:
        if self.rate_qps is not None and self.concurrency is not None:
            return "rate_qps and concurrency exclude each other"
        return None

    @property
    def settings(self) -> ReplaySettings:
        return ReplaySettings(
            self.policy,
            self.lengths,
            self.answer_tokens,
            self.overhead,
            self.concurrency or 1,
            self.rate_qps,
            self.seed,
            self.salt,
        )
