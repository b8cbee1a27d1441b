"""What a soak run does to the processes of a server, and how much memory they take meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import psutil

from compllm.server.triton_state import read_state

ENGINE, PATH, TRITON = "tensorrt_llm", "comp_llm", "tritonserver"
TARGETS = (ENGINE, PATH, TRITON)
SUPERVISOR, TRIAL = "supervisor", "guide trial"
_SETTLED_S = 60.0  # a process's first minute: what it reads and compiles then is no leak
# A fresh engine's cache is in memory only after some minutes of this load.
_SETTLED_SHARE = 2 / 3
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: `target` is killed at `at_s`, or stopped for `seconds`."""

    at_s: float
    target: str
    seconds: float | None = None  # None: kill -9

    @property
    def kind(self) -> Literal["kill -9", "pause"]:
        return "kill -9" if self.seconds is None else "pause"


def schedule(
    seconds: float, num_kills: int, num_pauses: int, max_pause_s: float, rng: random.Random
) -> list[Fault]:
    """Faults at random times. The kills come in the first half of the run, so that the second shows
    the memory of processes that live; pauses there are half as long at most."""
    begin, half, end = 0.03 * seconds, seconds / 2, 0.97 * seconds
    targets = _shuffled(num_kills, rng)
    step = (half - begin) / max(1, num_kills)
    faults = [
        Fault(begin + step * (number + rng.random() / 2), target)
        for number, target in enumerate(targets)
    ]
    for target in _shuffled(num_pauses, rng):
        at_s = rng.uniform(begin, end)
        longest_s = max_pause_s if at_s < half else max_pause_s / 2
        faults.append(Fault(at_s, target, rng.uniform(0.1, longest_s)))
    return sorted(faults, key=lambda fault: fault.at_s)


def _shuffled(count: int, rng: random.Random) -> list[str]:
    targets = [TARGETS[number % len(TARGETS)] for number in range(count)]
    rng.shuffle(targets)
    return targets


def processes() -> dict[str, psutil.Process]:
    """The processes of the user's server that live now, by what they are."""
    info = read_state()
    found: dict[str, psutil.Process] = {}
    with contextlib.suppress(psutil.Error):
        if info is not None:
            found[SUPERVISOR] = psutil.Process(info.pid)
            found[TRITON] = psutil.Process(info.server_pid)
            for child in found[TRITON].children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    found[_kind(child)] = child
    return found


def _kind(child: psutil.Process) -> str:
    command = " ".join(child.cmdline())
    if "guide_trial" in command:
        return TRIAL
    return PATH if f"/{PATH}/" in command else ENGINE


async def inject(fault: Fault) -> bool:
    """Kill or pause the process. False: it was not there, as the server was starting again."""
    process = processes().get(fault.target)
    if process is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        if fault.seconds is None:
            process.kill()
            return True
        process.send_signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            process.send_signal(signal.SIGCONT)
        return True
    return fault.seconds is not None  # a paused one that was killed meanwhile


@dataclass(frozen=True, slots=True)
class Sample:
    """Resident memory of a process."""

    at_s: float
    kind: str
    pid: int
    rss_mib: float


async def sample(samples: list[Sample], every_s: float, start_s: float) -> None:
    """Add a sample of each process, for ever."""
    while True:
        at_s = time.monotonic() - start_s
        for kind, process in (await asyncio.to_thread(processes)).items():
            with contextlib.suppress(psutil.Error):
                rss_mib = process.memory_info().rss / 2**20
                samples.append(Sample(at_s, kind, process.pid, rss_mib))
        await asyncio.sleep(every_s)


def memory(samples: Sequence[Sample], seconds: float) -> dict[str, Mapping[str, float | None]]:
    """By kind of process: medians of its first and last minute, peak, and the slope over the last
    third of the run. The slope is of the last process, without the first minute of its life."""
    found: dict[str, Mapping[str, float | None]] = {}
    for kind in sorted({each.kind for each in samples}):
        ours = [each for each in samples if each.kind == kind]
        first, last = ours[0].at_s + _MINUTE_S, ours[-1].at_s - _MINUTE_S
        life = [each for each in ours if each.pid == ours[-1].pid]
        settled_s = max(seconds * _SETTLED_SHARE, life[0].at_s + _SETTLED_S)
        found[kind] = {
            "processes": len({each.pid for each in ours}),
            "first_minute_mib": statistics.median(e.rss_mib for e in ours if e.at_s <= first),
            "last_minute_mib": statistics.median(e.rss_mib for e in ours if e.at_s >= last),
            "peak_mib": max(each.rss_mib for each in ours),
            "slope_mib_per_min": _slope([each for each in life if each.at_s >= settled_s]),
            "slope_over_s": max(0.0, life[-1].at_s - settled_s),
        }
    return found


def _slope(samples: Sequence[Sample]) -> float | None:
    """MiB a minute, by least squares; None of fewer than three samples."""
    if len(samples) < 3:
        return None
    minutes = np.array([each.at_s for each in samples]) / 60
    slope, _ = np.polyfit(minutes, np.array([each.rss_mib for each in samples]), 1)
    return float(slope)
