"""A workload on a profile under a policy: what its queries saw, what the engines can carry.

The last step of `compllm simulate`; the arithmetic of `benchmarks/load/bench_load.py` too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

import numpy as np

from compllm import _core
from compllm.errors import ConfigError
from compllm.lab.engine_profile import EngineProfile
from compllm.lab.simulate.workload import Floats, Load, Workload
from compllm.plural import counted
from compllm.scheduling.admission import PolicyName

_CAPACITY_QUERIES = 5_000  # enough for the ends of a saturated run to weigh under 1 %
_MOST_ENGINES = 4_096


@dataclass(frozen=True, slots=True)
class Service:
    """Who serves the load."""

    profile: EngineProfile
    policy: PolicyName = "oldest_query_first"
    max_in_flight: int = 64  # requests at an engine
    num_engines: int = 1


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one number over all queries."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Floats) -> Spread:
        p50, p95, p99 = np.percentile(values, (50, 95, 99), method="inverted_cdf")
        return cls(float(values.mean()), float(p50), float(p95), float(p99), float(values.max()))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a load of queries saw, and what it made of the engines."""

    policy: PolicyName
    num_queries: int
    latency_ms: Spread
    ttft_ms: Spread  # the answer's first token; without composing, the end
    wait_ms: Spread  # of each query's longest wait for admission; max: the worst of any request
    mean_wait_ms: float  # of a request
    max_waiting: int  # requests at one time
    throughput_qps: float
    utilisation: float  # share of the time in which an engine computed, mean over the engines
    mean_batch: float  # sequences in a step
    steps_per_query: float

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def run(workload: Workload, load: Load, service: Service) -> Outcome:
    """Raises ConfigError for a setting that makes no sense."""
    result = simulate(workload, load, service)
    engines = result.engines
    num_steps = sum(engine.num_steps for engine in engines)
    end_ms = result.end_ms
    return Outcome(
        service.policy,
        load.num_queries,
        Spread.of(result.take_latency_ms()),
        Spread.of(result.take_ttft_ms()),
        Spread.of(result.take_wait_ms()),
        result.total_wait_ms / result.num_requests,
        result.max_waiting,
        1e3 * load.num_queries / end_ms,
        sum(engine.busy_ms for engine in engines) / (end_ms * len(engines)),
        sum(engine.num_sequence_steps for engine in engines) / num_steps,
        num_steps / load.num_queries,
    )


def simulate(
    workload: Workload, load: Load, service: Service, *, is_traced: bool = False
) -> _core.Simulated:
    """The simulation itself, with every request where is_traced."""
    if load.num_queries == 0:
        raise ConfigError("0 queries are to be simulated: at least one is needed")
    if not 1 <= service.num_engines <= _MOST_ENGINES or service.max_in_flight < 1:
        raise ConfigError(
            f"{counted(service.num_engines, 'engine')} with "
            f"{counted(service.max_in_flight, 'request')} in flight: there "
            f"are 1 to {_MOST_ENGINES} engines, each takes at least 1 request"
        )
    return _core.simulate(
        workload.specs,
        service.profile.engine_model(),
        service.profile.host_model(),
        _core.Policy.__members__[service.policy],
        service.max_in_flight,
        load.arrivals_ms,
        load.graph_of,
        load.responses,
        service.num_engines,
        workload.is_streamed,
        is_traced,
    )


def capacity_qps(
    workload: Workload, service: Service, num_queries: int = _CAPACITY_QUERIES
) -> float:
    """Queries a second of engines that never run dry: all of them wait from the start."""
    return run(workload, workload.load(math.inf, num_queries), service).throughput_qps


def engines_needed(fits: Callable[[int], bool], most: int = _MOST_ENGINES) -> int | None:
    """The smallest number of engines that fits, None where `most` do not. More of them are taken to
    fit too: doubling, then halving the gap."""
    high = 1
    while not fits(high):
        if high == most:
            return None
        high = min(2 * high, most)
    low = high // 2  # does not fit, or is 0
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            high = middle
        else:
            low = middle
    return high


def gains(outcomes: Iterable[Outcome], base: PolicyName = "fifo") -> dict[str, dict[str, float]]:
    """How many times shorter than the base's each policy's latency is, by percentile."""
    by_policy = {outcome.policy: outcome.latency_ms for outcome in outcomes}
    if base not in by_policy:
        return {}
    return {
        policy: {
            key: getattr(by_policy[base], key) / getattr(latency, key)
            for key in ("mean", "p50", "p95", "p99", "max")
        }
        for policy, latency in by_policy.items()
        if policy != base
    }
