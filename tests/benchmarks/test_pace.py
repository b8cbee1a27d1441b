"""A simulation at the pace that an engine had: where work and time part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from benchmarks.load.pace import Pace, paced

from compllm.lab.engine_profile import EngineProfile
from compllm.lab.replay.counters import TimedSteps, Window, windows_of
from compllm.lab.replay.graphs import ReplayGraph
from compllm.lab.replay.workload import TokenLengths
from compllm.lab.simulate.load import Service, run
from compllm.lab.simulate.workload import Load, Shape, Workload, make_workload, quarters
from compllm.types import Plan, SubQuery

PROFILE = EngineProfile(
    "test", ((0, 4.0), (1, 8.0), (4, 14.0)), 2.0, max_batch_size=8, mixed_ms=3.0
)
SERVICE = Service(PROFILE, max_in_flight=4)
PAIR = ReplayGraph("pair", "Which is more?", Plan((SubQuery(1, "How many?"), SubQuery(2, "How?"))))


def decodes(num_steps: int, total_ms: float) -> TimedSteps:
    return TimedSteps(1, False, num_steps, total_ms, 0)  # of 8 ms each, says the profile


def workload_and_load() -> tuple[Workload, Load]:
    workload = make_workload([PAIR], TokenLengths(8), Shape(), quarters)
    return workload, workload.load(2.0, 50)


def test_a_steady_engine_has_the_latencies_of_the_run():
    workload, load = workload_and_load()
    pace = Pace.of([Window(5_000.0, (decodes(500, 4_000.0),))], PROFILE)
    assert pace.speeds.tolist() == [1.0]
    found, wanted = paced(workload, load, SERVICE, pace), run(workload, load, SERVICE).latency_ms
    for key in ("mean", "p50", "p95", "p99", "max"):
        assert getattr(found, key) == pytest.approx(getattr(wanted, key))


def test_half_the_pace_is_an_engine_of_steps_twice_as_long():
    workload, load = workload_and_load()
    pace = Pace.of([Window(5_000.0, (decodes(250, 4_000.0),))], PROFILE)
    slow = replace(
        PROFILE,
        step_ms=tuple((size, 2 * ms) for size, ms in PROFILE.step_ms),
        prefill_ms_per_token=4.0,
        mixed_ms=6.0,
    )
    wanted = run(workload, load, replace(SERVICE, profile=slow)).latency_ms
    assert paced(workload, load, SERVICE, pace).mean == pytest.approx(wanted.mean)


def test_a_slow_spell_is_felt_by_those_in_it():
    workload, _ = workload_and_load()
    load = Load(
        np.array([0.0, 10_000.0]),
        np.zeros(2, np.int32),
        np.concatenate([workload.responses[0]] * 2),
    )
    windows = [
        Window(9_000.0, (decodes(1_000, 8_000.0),)),
        Window(20_000.0, (decodes(500, 8_000.0),)),
    ]
    alone = run(workload, load, SERVICE).latency_ms.mean
    found = paced(workload, load, SERVICE, Pace.of(windows, PROFILE))
    assert found.p50 == pytest.approx(alone)
    assert found.max == pytest.approx(2 * alone)


def test_the_speed_counts_prefill_and_mixed_steps():
    steps = (
        TimedSteps(0, True, 2, 100.0, 46),  # 2 * 4 + 46 * 2: 100
        TimedSteps(4, True, 10, 540.0, 50),  # 10 * (14 + 3) + 50 * 2: 270
    )
    (speed,) = Pace.of([Window(700.0, steps)], PROFILE).speeds
    assert speed == pytest.approx(370 / 640)


def test_a_window_of_hardly_any_steps_tells_no_speed():
    windows = [Window(1_000.0, ()), Window(2_000.0, (decodes(1, 100.0),))]
    assert Pace.of(windows, PROFILE).speeds.tolist() == [1.0, 1.0]
    nothing = Pace.of([], PROFILE)
    assert nothing.time_of(nothing.work_by(np.array([0.0, 7.0]))).tolist() == [0.0, 7.0]


def test_windows_lie_between_the_readings():
    count, seconds = ((f"compllm_{name}_total", "1,no") for name in ("timed_steps", "step_seconds"))
    readings = [
        (0.0, {count: 5.0, seconds: 1.0}),
        (3_000.0, {count: 5.0, seconds: 1.0}),
        (6_100.0, {count: 9.0, seconds: 1.5}),
    ]
    idle, busy = windows_of(readings)
    assert idle == Window(3_000.0, ())
    assert busy == Window(6_100.0, (TimedSteps(1, False, 4, 500.0, 0),))
    assert windows_of(readings[:1]) == ()
