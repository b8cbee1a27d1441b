"""What a decoding step of the embedded engine takes beside its inference: the host's time.

    python -m benchmarks.engine.bench_host [--rounds N] [--quick]

The executor itself with four random rank-8 adapters dealt out in turn, prompts of 32 tokens and 64
new ones, streamed to a caller that only counts. Of each step in which every request decodes: the
executor's own clock, from the end of the step before to its end, less what OpenVINO's `infer` took.
What is left is scheduling, the step's tensors, sampling, counting and delivery.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.engine.contestants import Ours, prompts_of
from benchmarks.report import Report, add_arguments, percentiles

if TYPE_CHECKING:
    from compllm.embedded.executor import Executor
    from compllm.embedded.scheduler import StepPlan

NUM_REQUESTS = (1, 4, 8, 16, 32)
NUM_ADAPTERS = 4
PROMPT, NEW = 32, 64


@dataclass(slots=True)
class Clock:
    """Nanoseconds of the inference under way, and of the steps that have ended."""

    infer_ns: int = 0
    steps: list[tuple[int, bool, int, int]] = field(default_factory=list)


@contextlib.contextmanager
def timed(clock: Clock) -> Iterator[None]:
    """While open, every step of an engine in this process is written down."""
    from openvino import InferRequest

    from compllm.embedded.counters import StepCounters

    infer, count_step = InferRequest.infer, StepCounters.count_step

    def clocked(request: Any) -> Any:
        start = time.monotonic_ns()
        try:
            return infer(request)
        finally:
            clock.infer_ns += time.monotonic_ns() - start

    def counted(counters: StepCounters, plan: StepPlan) -> None:
        taken_ns = time.monotonic_ns() - counters.since_ns
        is_decode = all(count == 1 for _, count in plan)
        clock.steps.append((len(plan), is_decode, taken_ns, clock.infer_ns))
        clock.infer_ns = 0
        count_step(counters, plan)

    with (
        mock.patch.object(InferRequest, "infer", clocked),
        mock.patch.object(StepCounters, "count_step", counted),
    ):
        yield


def decode(engine: Executor, prompts: Sequence[Sequence[int]], num_new: int) -> None:
    """All of them at once, streamed; returns when the last has ended."""
    from compllm.embedded.request import EngineEvent, EngineRequest

    done = threading.Semaphore(0)

    def on_event(event: EngineEvent) -> None:
        if event.is_final:
            done.release()

    for number, prompt in enumerate(prompts):
        task_id = number % NUM_ADAPTERS + 1
        engine.submit(
            EngineRequest(tuple(prompt), num_new, task_id=task_id, is_streamed=True), on_event
        )
    for _ in prompts:
        done.acquire()


def main(argv: Sequence[str] | None = None) -> int:
    from compllm import paths

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", default=None, help="embedded engine; default: the one in use")
    arguments = parser.parse_args(argv)
    counts = NUM_REQUESTS[:2] if arguments.quick else NUM_REQUESTS
    rounds, num_new = (1, 8) if arguments.quick else (arguments.rounds, NEW)
    report = Report("bench_host", arguments, ("openvino", "numpy"), "medians over steps")
    ours = Ours(str(arguments.engine or paths.engine_dir()), NUM_ADAPTERS)
    (engine,) = ours.engines
    decode(engine, prompts_of(max(counts), PROMPT, 0), num_new)  # models of every size are made
    times: dict[int, list[tuple[int, int]]] = {count: [] for count in counts}
    for turn in range(rounds):
        for count in counts:
            clock = Clock()
            with timed(clock):
                decode(engine, prompts_of(count, PROMPT, turn), num_new)
            times[count] += [
                (taken_ns, infer_ns)
                for num, is_decode, taken_ns, infer_ns in clock.steps
                if is_decode and num == count
            ]
    for count, each in times.items():
        host = [1e-6 * (taken_ns - infer_ns) for taken_ns, infer_ns in each]
        report.add(
            "host time of a decoding step",
            requests=count,
            steps=len(each),
            step_ms=round(statistics.median(1e-6 * taken_ns for taken_ns, _ in each), 3),
            inference_ms=round(statistics.median(1e-6 * infer_ns for _, infer_ns in each), 3),
            **{f"host_{key}_ms": round(value, 3) for key, value in percentiles(host).items()},
        )
    for engine in ours.engines:
        engine.close()
    report.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
