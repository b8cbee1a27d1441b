"""How fast an engine was at each time of a replay, and a simulation at that pace.

Stands beside `replayed.py`: the simulator knows one time for each kind of step, but a shared
machine has moods, and near the capacity a spell of slow steps makes a queue that outlasts it. The
engine's counters, read every few seconds of the run, show those spells. What is left between
prediction and replay then is the error of the model of queue, path and engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compllm.lab.engine_profile import EngineProfile
from compllm.lab.replay.counters import TimedSteps, Window
from compllm.lab.simulate.load import Service, Spread, simulate
from compllm.lab.simulate.workload import Floats, Load, Workload

_ENOUGH = 0.2  # of a window's time, so that its steps show the speed
_LONG_MS = 1e9  # beyond the end of any run


@dataclass(frozen=True, slots=True)
class Pace:
    """Work done by each time: how many ms a steady engine needs for what this one did."""

    time_ms: Floats  # from 0, rising
    work_ms: Floats

    @classmethod
    def of(cls, windows: Sequence[Window], profile: EngineProfile) -> Pace:
        """profile: of the whole run (`fit.seen`). Beyond the last window it goes on as in it."""
        times_ms, speeds = [0.0], []
        for window in windows:
            taken_ms = sum(each.total_ms for each in window.steps)
            is_told = taken_ms >= _ENOUGH * (window.end_ms - times_ms[-1])
            steady_ms = sum(_steady_ms(each, profile) for each in window.steps)
            speeds.append(steady_ms / taken_ms if is_told else 1.0)
            times_ms.append(window.end_ms)
        time_ms = np.array([*times_ms, times_ms[-1] + _LONG_MS])
        speed = np.array([*speeds, speeds[-1] if speeds else 1.0])
        return cls(time_ms, np.concatenate(([0.0], np.cumsum(speed * np.diff(time_ms)))))

    @property
    def speeds(self) -> NDArray[np.float64]:
        """Of each window; 1 is the run's mean engine."""
        speeds: NDArray[np.float64] = np.diff(self.work_ms) / np.diff(self.time_ms)
        return speeds[:-1]

    def work_by(self, time_ms: Floats) -> Floats:
        return np.interp(time_ms, self.time_ms, self.work_ms)

    def time_of(self, work_ms: Floats) -> Floats:
        return np.interp(work_ms, self.work_ms, self.time_ms)


def paced(workload: Workload, load: Load, service: Service, pace: Pace) -> Spread:
    """The latencies of a load on an engine of this pace. The host's few ms keep pace with it."""
    steady = Load(pace.work_by(load.arrivals_ms), load.graph_of, load.responses)
    ends_ms = steady.arrivals_ms + simulate(workload, steady, service).take_latency_ms()
    return Spread.of(pace.time_of(ends_ms) - load.arrivals_ms)


def _steady_ms(steps: TimedSteps, profile: EngineProfile) -> float:
    each_ms = profile.step_time_ms(steps.num_decodes)
    if steps.has_prefill and steps.num_decodes:
        each_ms += profile.mixed_ms
    return steps.num_steps * each_ms + steps.num_prefilled * profile.prefill_ms_per_token
