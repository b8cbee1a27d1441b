"""What the simulator makes of a run of bench_load: forecasts, and the model's own error.

bench_load runs the real path and adds these cells to each row; its head tells the models apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING

from benchmarks.report import Row

if TYPE_CHECKING:
    from benchmarks.load.bench_load import Bench, Seen
    from compllm.lab.engine_profile import EngineProfile
    from compllm.lab.simulate.load import Spread
    from compllm.lab.simulate.workload import Workload
    from compllm.scheduling.admission import PolicyName


def workload_of(bench: Bench) -> Workload:
    """As `compllm simulate` takes it from the file of graphs, before anything ran."""
    from compllm.lab.simulate.workload import Shape, base_encode, make_workload

    settings = bench.settings
    shape = Shape(settings.overhead, answer_tokens=settings.answer_tokens)
    return make_workload(
        bench.graphs,
        settings.lengths,
        shape,
        base_encode()[0],
        tokens_per_block=bench.fitted.tokens_per_block,
    )


def predicted(
    bench: Bench, seen: Seen, rate_qps: float, policy: PolicyName, profile: EngineProfile
) -> Row:
    """The simulator beside what the queries took: on the profile file knowing the load alone, then
    on the requests that ran."""
    from benchmarks.load.pace import Pace, paced
    from benchmarks.load.replayed import replayed as of_replay
    from compllm.lab.simulate.fit import seen as fit_seen
    from compllm.lab.simulate.load import Service, run

    ahead, behind = workload_of(bench), of_replay(seen.session.ran, profile.tokens_per_block)
    models = {
        "fitted": (bench.fitted, ahead, ahead.load(rate_qps, len(bench.graphs))),
        "simulated": (profile, *behind),
    }
    counted = fit_seen(profile, seen.session.steps) if seen.session.steps else None
    if counted is not None:
        models["replayed"] = (counted, *behind)
    cells: Row = {}
    for name, (model, workload, load) in models.items():
        outcome = run(workload, load, Service(model, policy, bench.max_in_flight))
        cells[f"{name}_worst_wait_ms"] = round(outcome.wait_ms.max, 1)
        cells[f"{name}_utilisation"] = round(outcome.utilisation, 3)
        cells |= beside(name, outcome.latency_ms, seen)
    if counted is not None and seen.session.windows:
        pace = Pace.of(seen.session.windows, counted)
        service = Service(counted, policy, bench.max_in_flight)
        cells |= beside("paced", paced(*behind, service, pace), seen)
        cells["slowest_window"] = round(float(pace.speeds.min()), 3)
        cells["fastest_window"] = round(float(pace.speeds.max()), 3)
    return cells


def beside(name: str, found: Spread, seen: Seen) -> Row:
    """A model's latencies, and what they are off."""
    cells: Row = {}
    real = spread(seen.latencies_ms)
    for key in ("mean", "p50", "p95", "p99"):
        ms, real_ms = getattr(found, key), getattr(real, key)
        cells[f"{name}_{key}_ms"] = round(ms, 1)
        cells[f"{name}_{key}_error"] = round(ms / real_ms - 1, 4)
    return cells


def profile_of(seen: Seen, fitted: EngineProfile) -> EngineProfile:
    """The step times measured around the run, the host's as seen in it, and what a step takes more
    with a prefill in it or a long context as the file has it."""
    from compllm.lab.replay.records import dispatch_latencies_ms

    measured = seen.session.profile
    assert measured is not None
    answers = [ran.answer for ran in seen.session.ran if ran.error is None and ran.answer]
    latencies = [ms for answer in answers for ms in dispatch_latencies_ms(answer)]
    route_ms = median(1e3 * answer.timings.route_s / len(answer.nodes) for answer in answers)
    # A child that waits for admission shows up as a slow dispatch: the quickest tenth did not.
    quickest = sorted(latencies)[: len(latencies) // 10 + 1]
    return replace(
        measured,
        context_ms_per_token=fitted.context_ms_per_token,
        mixed_ms=fitted.mixed_ms,
        host=replace(
            measured.host,
            handover_ms=max(0.0, median(quickest)) if quickest else 0.0,
            route_ms=route_ms,
        ),
    )


def spread(latencies_ms: Sequence[float]) -> Spread:
    import numpy as np

    from compllm.lab.simulate.load import Spread

    return Spread.of(np.array(latencies_ms))
