"""Ten minutes of load on a server whose parts are killed and paused, among hostile requests.

    python -m benchmarks.soak             # a server of its own, under the product's supervisor
    python -m benchmarks.soak --quick     # a smoke run

Each question of a fixed pool is asked once alone: that answer is the right one. Then queries arrive
in an open loop (Poisson) at a given multiple of the measured capacity: to `comp_llm` streamed,
whole and over HTTP, and to `tensorrt_llm` with an adapter's id. Meanwhile the engine's process,
`comp_llm`'s and tritonserver are killed or stopped for up to two seconds, clients leave in the
middle of a stream, and hostile requests arrive. A client tries again where the server's text says
that it may.

lost: no whole answer within `--budget` seconds. wrong: another answer than alone. Where an answer
of the engine parts from the one alone at a token that was as likely as the other (`--tie` nats), it
is counted apart, as a near tie. So is an answer whose plan says that the generator failed or was
late, and that the query itself was asked in its place (a fallback).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.load.soak_clients import (
    Answer,
    Clients,
    MayRepeat,
    Outcome,
    Question,
    make_pool,
)
from benchmarks.load.soak_faults import Fault, inject, sample, schedule
from benchmarks.load.soak_hostile import HOSTILE
from benchmarks.load.soak_report import Seen, report_all
from benchmarks.report import Report, add_arguments
from benchmarks.triton_load import read_metrics

USERS = 16  # of the closed loop that finds the capacity
_HOSTILE_PER_S, _LEAVERS_PER_S = 0.5, 0.5
_SAMPLE_S = 5.0
# The cache is in memory from its first use on: one that is used up within minutes shows a leak.
_KV_TOKENS = 8192
_START_S = 300.0  # on a machine that others use, too
_IDLE_S = 30.0  # until nothing may be left in the engine


async def ask_alone(clients: Clients, pool: Sequence[Question]) -> list[Answer]:
    """The answers of a server that has nothing else to do."""
    answers = []
    for question in pool:
        outcome = await clients.ask_until_right(question, Outcome(0, 0.0), 60.0, time.monotonic())
        if outcome.answer is None:
            raise SystemExit(f"no answer alone to {str(question)!r}: {outcome.error}")
        answers.append(outcome.answer)
    return answers


async def capacity(
    clients: Clients, pool: Sequence[Question], seconds: float, rng: random.Random
) -> float:
    """Whole answers a second, `USERS` at a time."""
    start_s, num_whole = time.monotonic(), 0

    async def user() -> None:
        nonlocal num_whole
        while time.monotonic() - start_s < seconds:
            try:
                await clients.ask(rng.choice(pool))
                num_whole += 1
            except MayRepeat:
                await asyncio.sleep(0.5)

    await asyncio.gather(*(user() for _ in range(USERS)))
    return num_whole / (time.monotonic() - start_s)


class Run:
    """The ten minutes."""

    def __init__(
        self,
        clients: Clients,
        pool: Sequence[Question],
        faults: Sequence[Fault],
        options: argparse.Namespace,
    ) -> None:
        self._clients = clients
        self._pool = pool
        self._faults = faults
        self._options = options
        self._start_s = 0.0
        self.seen = Seen()

    async def run(self, rate: float) -> Seen:
        """rate: queries a second."""
        seed, seconds = self._options.seed, self._options.seconds
        self._start_s = time.monotonic()
        samples = sample(self.seen.samples, min(_SAMPLE_S, seconds / 8), self._start_s)
        sampler = asyncio.create_task(samples)
        await asyncio.gather(
            self._inject_all(),
            self._arrivals(rate, random.Random(seed + 1), self._query),
            self._arrivals(_HOSTILE_PER_S, random.Random(seed + 2), self._hostile),
            self._arrivals(_LEAVERS_PER_S, random.Random(seed + 3), self._leaver),
        )
        sampler.cancel()
        return self.seen

    async def _arrivals(
        self,
        rate: float,
        rng: random.Random,
        begin: Callable[[float, random.Random], Awaitable[None]],
    ) -> None:
        """Begin something at random times; returns when all of it has ended."""
        due_s, tasks = 0.0, set[asyncio.Future[None]]()
        while (due_s := due_s + rng.expovariate(rate)) < self._options.seconds:
            await asyncio.sleep(max(0.0, self._start_s + due_s - time.monotonic()))
            tasks.add(asyncio.ensure_future(begin(due_s, random.Random(rng.random()))))
        await asyncio.gather(*tasks)

    async def _query(self, due_s: float, rng: random.Random) -> None:
        number = rng.randrange(len(self._pool))
        outcome = Outcome(number, due_s)
        self.seen.outcomes.append(outcome)
        await self._clients.ask_until_right(
            self._pool[number], outcome, self._options.budget, self._start_s
        )

    async def _hostile(self, due_s: float, rng: random.Random) -> None:
        kind = rng.choice(list(HOSTILE))
        ending = await self._clients.send_hostile(HOSTILE[kind](self._clients, rng))
        self.seen.hostile.append((kind, ending))

    async def _leaver(self, due_s: float, rng: random.Random) -> None:
        await self._clients.leave(rng.choice(self._pool), rng.uniform(0.01, 1.0))
        self.seen.num_leavers += 1

    async def _inject_all(self) -> None:
        for fault in self._faults:
            await asyncio.sleep(max(0.0, self._start_s + fault.at_s - time.monotonic()))
            at_s = time.monotonic() - self._start_s
            if await inject(fault):
                self.seen.injected.append(Fault(at_s, fault.target, fault.seconds))


async def num_active_when_idle(metrics_url: str) -> float:
    """Requests that the engine still has when all clients have gone; 0 unless some are leaked."""
    deadline_s = time.monotonic() + _IDLE_S
    while True:
        counts = await asyncio.to_thread(read_metrics, metrics_url)
        active = next((v for key, v in counts.items() if "active" in key), 0.0)
        if not active or time.monotonic() > deadline_s:
            return active
        await asyncio.sleep(0.2)


async def measure(options: argparse.Namespace, report: Report, engine: Path) -> None:
    from compllm.backends.tokenizer import Tokenizer
    from compllm.catalogue import load_catalogue
    from compllm.config import load_config
    from compllm.formats.manifest import Manifest
    from compllm.server import triton_server

    rng = random.Random(options.seed)
    config = load_config()
    catalogue = load_catalogue(Path(config.catalogue) if config.catalogue else None)
    pool = make_pool(catalogue, Manifest.read(engine), options.questions, rng)
    info = await asyncio.to_thread(
        triton_server.up,
        engine,
        options={"kv_cache_tokens": _KV_TOKENS},
        has_face=True,
        http_port=0,
        timeout_s=_START_S,
    )
    try:
        clients = Clients(info, Tokenizer.from_dir(engine), options.max_tokens, options.deadline)
        oracle = await ask_alone(clients, pool)
        # A warm-up first: the server learns how long queries take.
        await capacity(clients, pool, options.capacity_seconds / 2, rng)
        most = await capacity(clients, pool, options.capacity_seconds, rng)
        faults = schedule(options.seconds, options.kills, options.pauses, options.pause, rng)
        seen = await Run(clients, pool, faults, options).run(options.load * most)
        report.summary |= {"capacity_per_s": most, "rate_per_s": options.load * most}
        report.summary["active_when_idle"] = await num_active_when_idle(info.metrics_url)
        seen.again = await ask_alone(clients, pool)
        await clients.aclose()
    finally:
        await asyncio.to_thread(triton_server.down)
    report_all(report, options, pool, oracle, seen)


@contextlib.contextmanager
def home_of_its_own() -> Iterator[None]:
    """A home with the user's base and encoder and no server: `up` there disturbs no other."""
    from compllm import paths

    theirs = paths.home_dir()
    before = os.environ.get("COMPLLM_HOME")
    with tempfile.TemporaryDirectory(prefix="compllm-soak-") as folder:
        for name in ("base", "encoder"):
            if (theirs / name).exists():
                (Path(folder) / name).symlink_to((theirs / name).resolve())
        os.environ["COMPLLM_HOME"] = folder
        try:
            yield
        finally:
            os.environ.pop("COMPLLM_HOME")
            if before is not None:
                os.environ["COMPLLM_HOME"] = before


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--engine", type=Path, metavar="DIR", help="default: of `compllm up`")
    parser.add_argument(
        "--load", type=float, default=0.7, metavar="X", help="times the capacity; default: 0.7"
    )
    parser.add_argument("--seconds", type=float, default=600.0, metavar="S", help="default: 600")
    parser.add_argument(
        "--capacity-seconds", type=float, default=30.0, metavar="S", help="default: 30"
    )
    parser.add_argument(
        "--deadline", type=float, default=30.0, metavar="S", help="of one attempt; default: 30"
    )
    parser.add_argument(
        "--budget", type=float, default=120.0, metavar="S", help="of all attempts; default: 120"
    )
    parser.add_argument("--questions", type=int, default=90, metavar="N", help="default: 90")
    parser.add_argument("--kills", type=int, default=6, metavar="N", help="default: 6")
    parser.add_argument("--pauses", type=int, default=12, metavar="N", help="default: 12")
    parser.add_argument(
        "--pause", type=float, default=2.0, metavar="S", help="longest pause; default: 2"
    )
    parser.add_argument(
        "--max-tokens", type=int, default=64, metavar="N", help="of an answer; default: 64"
    )
    parser.add_argument(
        "--tie", type=float, default=0.02, metavar="NATS", help="as good as equal; default: 0.02"
    )
    add_arguments(parser)
    options = parser.parse_args(arguments)
    if options.quick:
        options.seconds, options.capacity_seconds, options.questions = 5.0, 0.5, 9
        options.kills, options.pauses, options.pause = 1, 1, 0.5
    from compllm import paths

    report = Report(
        "soak",
        options,
        ("tritonclient", "grpcio", "openvino", "nvidia-pytriton"),
        note="Clients and server share one machine. 'right': as the answer given alone. 'away': no "
        "server was there. Times count from when a query was due, over all its attempts.",
    )
    engine = (options.engine or paths.engine_dir()).expanduser().resolve()
    with home_of_its_own():
        asyncio.run(measure(options, report, engine))
    report.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())
