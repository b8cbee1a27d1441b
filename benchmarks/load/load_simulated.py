"""Admission policies under load, simulated: the part of `bench_load` that needs no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import Report, Row

if TYPE_CHECKING:
    from compllm.lab.replay.graphs import ReplayGraph
    from compllm.lab.simulate.load import Outcome, Service
    from compllm.lab.simulate.workload import Workload
    from compllm.scheduling.admission import PolicyName

POLICIES: tuple[PolicyName, ...] = (
    "oldest_query_first",
    "fifo",
    "deepest_first",
    "least_remaining_work",
)
LOADS = (0.5, 0.7, 0.9, 0.95)
P95_TARGET, P99_TARGET = 1.3, 1.4  # against FIFO, at the load of 90 %
_COMMON_LOAD = 0.9  # of the largest capacity: what all limits but the smallest can carry


@dataclass(frozen=True, slots=True)
class Grid:
    """What is simulated."""

    loads: Sequence[float]
    num_queries: int
    seed: int
    node_tokens: int = 32  # of every response, or their mean
    answer_tokens: int = 32


def simulated(
    report: Report, graphs: Sequence[ReplayGraph], profiles: Sequence[str], grid: Grid
) -> None:
    """Table `simulated`: each profile, length of responses, limit, share of its capacity and
    policy. Table `one rate`: what the limits make of the same queries."""
    from compllm.lab.engine_profile import load_profile
    from compllm.lab.replay.workload import TokenLengths
    from compllm.lab.simulate.load import Service, capacity_qps
    from compllm.lab.simulate.workload import Shape, base_encode, make_workload

    encode, _ = base_encode()
    for name in profiles:
        profile = load_profile(name)
        for sigma in (0.0, 0.8):
            lengths = TokenLengths(grid.node_tokens, sigma, grid.seed)
            shape = Shape(answer_tokens=grid.answer_tokens)
            workload = make_workload(
                graphs, lengths, shape, encode, tokens_per_block=profile.tokens_per_block
            )
            limits = _limits(profile.max_batch_size)
            services = [Service(profile, max_in_flight=limit) for limit in limits]
            capacities = [capacity_qps(workload, service) for service in services]
            engine = "gpu-like (hypothetical)" if profile.is_hypothetical else "cpu"
            tokens = f"lognormal:{grid.node_tokens},{sigma}" if sigma else f"{grid.node_tokens}"
            for service, capacity in zip(services, capacities, strict=True):
                labels: Row = {
                    "engine": engine,
                    "tokens": tokens,
                    "answer_tokens": grid.answer_tokens,
                    "in_flight": service.max_in_flight,
                    "capacity_qps": round(capacity, 4),
                }
                for load in grid.loads:
                    outcomes = _all(workload, service, load * capacity, grid)
                    _add(report, "simulated", {**labels, "load": load}, outcomes)
                rate_qps = _COMMON_LOAD * max(capacities)
                if rate_qps < capacity:
                    outcomes = _all(workload, service, rate_qps, grid)
                    _add(report, "one rate", {**labels, "rate_qps": round(rate_qps, 4)}, outcomes)


def _limits(max_batch_size: int) -> Sequence[int]:
    return [limit for limit in (2, 4, 8, 16, 32, 64) if limit <= max_batch_size]


def _all(workload: Workload, service: Service, rate_qps: float, grid: Grid) -> list[Outcome]:
    """Every policy on the same queries."""
    from compllm.lab.simulate.load import run

    load = workload.load(rate_qps, grid.num_queries)
    return [run(workload, load, replace(service, policy=policy)) for policy in POLICIES]


def _add(report: Report, table: str, labels: Row, outcomes: Sequence[Outcome]) -> None:
    from compllm.lab.simulate.load import gains

    by_policy = gains(outcomes)
    for outcome in outcomes:
        latency = outcome.latency_ms
        gain = by_policy.get(outcome.policy, {})
        report.add(
            table,
            **labels,
            policy=outcome.policy,
            mean_ms=round(latency.mean, 1),
            p50_ms=round(latency.p50, 1),
            p95_ms=round(latency.p95, 1),
            p99_ms=round(latency.p99, 1),
            worst_ms=round(latency.max, 1),
            worst_wait_ms=round(outcome.wait_ms.max, 1),
            p95_gain=round(gain.get("p95", 1.0), 3),
            p99_gain=round(gain.get("p99", 1.0), 3),
            utilisation=round(outcome.utilisation, 3),
            mean_batch=round(outcome.mean_batch, 2),
        )


def summarise(report: Report) -> None:
    """Which settings reach the targets at a load of 90 %, and how far the best ones come."""
    rows = [
        row
        for row in report.tables.get("simulated", [])
        if row["load"] == 0.9 and row["policy"] != "fifo"
    ]
    if not rows:
        return
    reached = [
        {key: row[key] for key in ("engine", "tokens", "in_flight", "policy")}
        for row in rows
        if _number(row["p95_gain"]) >= P95_TARGET and _number(row["p99_gain"]) >= P99_TARGET
    ]
    report.summary["targets_at_90_percent"] = {"p95_gain": P95_TARGET, "p99_gain": P99_TARGET}
    report.summary["reached_by"] = reached
    report.summary["one_rate"] = {
        engine: min(
            (row for row in report.tables["one rate"] if row["engine"] == engine),
            key=lambda row: _number(row["p95_ms"]),
        )
        for engine in dict.fromkeys(str(row["engine"]) for row in rows)
    }
    report.summary["best_of_oldest_query_first"] = {
        engine: max(
            (row for row in rows if row["engine"] == engine and row["policy"] == POLICIES[0]),
            key=lambda row: _number(row["p95_gain"]),
        )
        for engine in dict.fromkeys(str(row["engine"]) for row in rows)
    }


def _number(cell: object) -> float:
    assert isinstance(cell, int | float)
    return float(cell)


def read(path: Path) -> list[ReplayGraph]:
    """The graphs of a file."""
    from compllm.config import Config
    from compllm.lab.replay.graphs import read_graphs

    return read_graphs(path, Config().limits.plan)
