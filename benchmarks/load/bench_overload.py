"""What a server of `comp_llm` does at twice its capacity, and how soon it recovers.

    python -m benchmarks.load.bench_overload             # a server of its own
    python -m benchmarks.load.bench_overload --quick     # a smoke run

First its capacity (closed loop, 12 users), then open loops with Poisson arrivals at 0.9 and at
2 times that rate, then the 0.9 again at once. Goodput counts whole answers within the deadline.
Latencies count from when a query was due. The questions are the 240 everyday ones of the first four
sets in benchmarks/questions; queries do not share sub-queries.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.path.bench_face import question_inputs
from benchmarks.report import Report, add_arguments, percentiles

_SETS = ("fresh", "fresh_second", "fresh_third", "fresh_fourth")
USERS = 12  # as many as run and wait: refused ones that ask again would load the server
STEADY, OVERLOAD = 0.9, 2.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One query as its user saw it; seconds from the start of its phase."""

    due_s: float
    end_s: float
    error: str  # empty: a whole answer

    @property
    def latency_s(self) -> float:
        return self.end_s - self.due_s


def everyday_questions() -> list[str]:
    folder = Path(__file__).resolve().parents[1] / "questions"
    lines = [
        line
        for name in _SETS
        for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    return [json.loads(line)["question"] for line in lines]


class Client:
    """Asks questions drawn from the sets, each with the same deadline."""

    def __init__(self, client: Any, deadline_s: float, seed: int) -> None:
        self._client = client
        self._deadline_s = deadline_s
        self._rng = random.Random(seed)
        self._questions = everyday_questions()
        self.start_s = 0.0  # of the phase, on the monotonic clock

    async def ask(self, due_s: float) -> Asked:
        inputs = question_inputs(self._rng.choice(self._questions), 64, self._deadline_s)

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": "comp_llm", "inputs": inputs}

        said = ""
        async for result, error in self._client.stream_infer(requests()):
            if error is not None:
                said = str(error)
            elif (reason := result.as_numpy("finish_reason")) is not None:
                said = "partial" if reason[0, 0] == b"error" else said
        return Asked(due_s, time.monotonic() - self.start_s, said)


async def closed_loop(client: Client, seconds: float) -> float:
    """Queries a second that are answered whole, `USERS` at a time; the first quarter, in which the
    engine fills, does not count."""
    client.start_s = time.monotonic()
    done: list[Asked] = []

    async def user() -> None:
        while time.monotonic() - client.start_s < seconds:
            done.append(await client.ask(time.monotonic() - client.start_s))
            if done[-1].error:  # a user who was refused does not ask again at once
                await asyncio.sleep(1.0)

    await asyncio.gather(*(user() for _ in range(USERS)))
    ends = [each.end_s for each in done if not each.error]
    return sum(0.25 * seconds < end <= seconds for end in ends) / (0.75 * seconds)


async def open_loop(
    client: Client, rate: float, seconds: float, rng: random.Random
) -> list[asyncio.Task[Asked]]:
    """The queries of one phase, as tasks; returns when the last of them has begun.

    As many as the rate says, at times that are uniform: Poisson arrivals, given their number.
    """
    dues = sorted(rng.uniform(0.0, seconds) for _ in range(round(rate * seconds)))
    client.start_s, tasks = time.monotonic(), []
    for due_s in dues:
        await asyncio.sleep(max(0.0, client.start_s + due_s - time.monotonic()))
        tasks.append(asyncio.create_task(client.ask(due_s)))
    return tasks


def add_phase(
    report: Report, name: str, asked: Sequence[Asked], seconds: float, deadline_s: float
) -> float:
    """A row of one phase; its goodput, in queries a second."""
    whole = [each for each in asked if not each.error and each.latency_s <= deadline_s]
    refused = [each for each in asked if "overloaded" in each.error]
    times = percentiles(each.latency_s for each in whole) if whole else {}
    goodput = len(whole) / seconds
    report.add(
        "phases",
        phase=name,
        queries=len(asked),
        whole=len(whole),
        refused=len(refused),
        late_or_failed=len(asked) - len(whole) - len(refused),
        goodput_per_s=goodput,
        **{f"{key}_s": value for key, value in times.items()},
        refused_p99_s=percentiles(e.latency_s for e in refused)["p99"] if refused else None,
    )
    return goodput


def live_at(asked: Sequence[Asked], time_s: float) -> int:
    """The queries that are due by that time and have no end yet."""
    return sum(each.due_s <= time_s < each.end_s for each in asked)


def recovery_s(
    steady: Sequence[Asked], before: Sequence[Asked], after: Sequence[Asked], seconds: float
) -> float:
    """From the end of the overload until no more queries are live than in the steady phase.

    That is its 95th percentile. before: the queries of the overload, their times counted from the
    phase's end. Looked at ten times a second; `seconds` where it never comes.
    """
    moments = [step / 10 for step in range(int(10 * seconds))]
    usual = percentiles(live_at(steady, each) for each in moments)["p95"]
    for each in moments:
        if live_at(before, each) + live_at(after, each) <= usual:
            return each
    return seconds


async def measure(arguments: argparse.Namespace, report: Report, url: str) -> None:
    import tritonclient.grpc.aio as triton

    seconds, deadline_s = arguments.seconds, arguments.deadline
    rng = random.Random(arguments.seed)
    async with triton.InferenceServerClient(url) as channel:
        client = Client(channel, deadline_s, arguments.seed)
        await closed_loop(client, min(30.0, seconds))  # warm-up: how long queries take is learnt
        capacity = await closed_loop(client, seconds)
        steady = await asyncio.gather(*await open_loop(client, STEADY * capacity, seconds, rng))
        add_phase(report, f"{STEADY:g} x", steady, seconds, deadline_s)
        over = await open_loop(client, OVERLOAD * capacity, arguments.overload_seconds, rng)
        # Not awaited: what is under way is part of what the next phase meets. That has a client of
        # its own, since a client's clock starts with its phase.
        after_client = Client(channel, deadline_s, arguments.seed + 1)
        after = await open_loop(after_client, STEADY * capacity, seconds, rng)
        overloaded = await asyncio.gather(*over)
        recovered = await asyncio.gather(*after)
    goodput = add_phase(
        report, f"{OVERLOAD:g} x", overloaded, arguments.overload_seconds, deadline_s
    )
    add_phase(report, f"{STEADY:g} x after it", recovered, seconds, deadline_s)
    end_s = arguments.overload_seconds
    since_the_end = [
        Asked(each.due_s - end_s, each.end_s - end_s, each.error) for each in overloaded
    ]
    recovered_s = recovery_s(steady, since_the_end, recovered, seconds)
    # One phase has too few queries for a 99th percentile: those of the other count from when the
    # overload was over.
    calm = [*steady, *(each for each in recovered if each.due_s >= recovered_s)]
    p99_s = percentiles(each.latency_s for each in calm if not each.error)["p99"]
    accepted = [each.latency_s for each in overloaded if not each.error]
    report.summary = {
        "capacity_per_s": capacity,
        "goodput_over_capacity": goodput / capacity,
        "steady_p99_s": p99_s,
        "p99_over_steady": percentiles(accepted)["p99"] / p99_s if accepted else None,
        "recovery_s": recovered_s,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--engine", type=Path, metavar="DIR", help="default: of `compllm up`")
    parser.add_argument("--deadline", type=float, default=30.0, metavar="S", help="default: 30")
    parser.add_argument(
        "--seconds", type=float, default=60.0, metavar="S", help="of a phase; default: 60"
    )
    parser.add_argument(
        "--overload-seconds", type=float, default=90.0, metavar="S", help="default: 90"
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.overload_seconds = 2.0, 3.0
    from compllm.server import triton_server

    report = Report(
        "bench_overload",
        options,
        ("tritonclient", "grpcio", "openvino", "nvidia-pytriton"),
        note="Client and server share one machine. 'whole': answered whole within the deadline.",
    )
    # Answers kept from earlier queries would make the capacity look better than it is.
    os.environ["COMPLLM_SHARING_IS_ON"] = "false"
    with triton_server.running(options.engine, has_face=True, is_shared=False) as info:
        asyncio.run(measure(options, report, info.grpc_url))
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
