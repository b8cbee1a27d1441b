"""Latency and throughput of any Triton with the contract: TensorRT-LLM's or the embedded one.

    python -m benchmarks.load.bench_triton               # the embedded engine, a server of its own
    python -m benchmarks.load.bench_triton --url HOST:8001 --metrics-url http://HOST:8002/metrics \\
        --tokenizer DIR --adapter-ids 11,12,13 [--adapters-dir DIR]

Closed loop: a number of users, each with one request at a time. Open loop: Poisson arrivals at
given rates, or at shares of the best closed-loop throughput; latencies count from when a request
was due, so that a server which falls behind cannot hide it. Requests go round-robin over the base
and the adapters, stream, and share no prefix. An llmapi repository is found out by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.report import Cell, Report, Row, add_arguments
from benchmarks.triton_load import (
    GENERATED,
    Timed,
    milliseconds,
    prompts,
    random_adapters,
    read_metrics,
    timed,
)

if TYPE_CHECKING:
    from compllm.backend import GenerateRequest
    from compllm.backends.llmapi import LlmApiBackend
    from compllm.backends.triton import TritonBackend

USERS = (1, 2, 4, 8, 16, 32, 64)
SHARES = (0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True, slots=True)
class Target:
    """The server that is measured."""

    backend: TritonBackend | LlmApiBackend
    adapter_ids: tuple[int | None, ...]  # round-robin
    metrics_url: str


@contextlib.asynccontextmanager
async def target(arguments: argparse.Namespace) -> AsyncIterator[Target]:
    """The server at the given address, or one of our own with random adapters in a cache of as many
    places."""
    from compllm.backends.select import connect
    from compllm.backends.triton import TritonBackend
    from compllm.formats.lora_tensors import read_base_shape
    from compllm.server import triton_server

    if arguments.url:
        backend = await connect(
            arguments.url, arguments.tokenizer, adapters_dir=arguments.adapters_dir
        )
        try:
            yield Target(backend, (None, *arguments.adapter_ids), arguments.metrics_url)
        finally:
            await backend.aclose()
        return
    options = {"max_adapters": max(1, arguments.num_adapters), "is_lora_cache": True}
    with triton_server.running(arguments.engine, options=options, is_shared=False) as info:
        engine = Path(info.engine_dir)
        weights = random_adapters(read_base_shape(engine), arguments.num_adapters, arguments.seed)
        connected = await TritonBackend.connect(info.grpc_url)
        ours = TritonBackend(info.grpc_url, connected.tokenizer, weights)
        await connected.aclose()
        ids = tuple(range(1, arguments.num_adapters + 1))
        await ours.warm_up(ids)
        try:
            yield Target(ours, (None, *ids), info.metrics_url)
        finally:
            await ours.aclose()


class Work:
    """Requests one after another, all different, the same for the same seed."""

    def __init__(self, target: Target, arguments: argparse.Namespace) -> None:
        from compllm.types import SamplingParams

        self._target = target
        self._arguments = arguments
        self._sampling = SamplingParams
        self._rng = random.Random(arguments.seed)
        self._texts = prompts(target.backend.tokenizer, 512, arguments.input_tokens, self._rng)
        self._num_made = 0

    def next(self) -> GenerateRequest:
        from compllm.backend import GenerateRequest, Segment

        number = self._num_made
        self._num_made += 1
        # A number first: the texts come again after a while, their KV blocks must not.
        text = f"{number} {self._texts[number % len(self._texts)]}"
        sampling = self._sampling(self._arguments.output_tokens, 1.0, seed=number)
        ids = self._target.adapter_ids
        return GenerateRequest(
            f"bench-{number}",
            (Segment(text),),
            sampling,
            model=self._arguments.model,
            adapter_id=ids[number % len(ids)],
            is_streamed=True,
        )


async def closed_loop(target: Target, work: Work, users: int, count: int) -> list[Timed]:
    """`users` at a time, `count` requests in all."""
    results: list[Timed] = []
    left = count

    async def user() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            results.append(await timed(target.backend, work.next()))

    await asyncio.gather(*(user() for _ in range(users)))
    return results


async def open_loop(
    target: Target, work: Work, rate: float, count: int, rng: random.Random
) -> list[Timed]:
    """Poisson arrivals, `rate` a second, whether or not the server keeps up."""
    start = time.monotonic()
    due = start
    tasks = []
    for _ in range(count):
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(timed(target.backend, work.next(), due)))
    return list(await asyncio.gather(*tasks))


def add_rows(
    report: Report, table: str, load: Row, results: Sequence[Timed], wall_s: float, **more: Cell
) -> float:
    """What both loops report of one load. Gives requests a second."""
    done = [each for each in results if not each.error]
    num_tokens = sum(each.num_tokens for each in done)
    tpots = [each.tpot_s for each in done if each.tpot_s is not None]
    report.add(
        table,
        **load,
        requests=len(results),
        failed=len(results) - len(done),
        requests_per_s=len(done) / wall_s,
        tokens_per_s=num_tokens / wall_s,
        tokens_per_request=num_tokens / len(done) if done else None,
        **more,
    )
    report.add(
        f"{table}: latency",
        **load,
        **milliseconds("ttft", (each.ttft_s for each in done)),
        **milliseconds("tpot", tpots),
        **milliseconds("all", (each.latency_s for each in done)),
    )
    return len(done) / wall_s


async def _metrics(url: str) -> dict[str, float]:
    if not url:
        return {}
    try:
        return await asyncio.to_thread(read_metrics, url)
    except OSError:
        return {}  # a server that keeps them to itself


def _engine_cells(before: dict[str, float], after: dict[str, float]) -> Row:
    """What the engine itself counted meanwhile; nothing where its metrics have other names."""
    steps = "nv_trt_llm_general_metrics iteration_counter"
    if steps not in after or GENERATED not in after:
        return {}
    num_steps = after[steps] - before.get(steps, 0)
    num_tokens = after[GENERATED] - before.get(GENERATED, 0)
    return {"tokens_per_step": num_tokens / num_steps if num_steps else None}


async def measure(arguments: argparse.Namespace, report: Report) -> None:
    async with target(arguments) as server:
        work = Work(server, arguments)
        rng = random.Random(arguments.seed + 1)
        await closed_loop(server, work, 4, 8)  # warm-up
        best = 0.0
        for users in arguments.users:
            before = await _metrics(server.metrics_url)
            start = time.monotonic()
            count = max(users, min(arguments.requests, 4 * users + 8))
            results = await closed_loop(server, work, users, count)
            wall_s = time.monotonic() - start
            engine = _engine_cells(before, await _metrics(server.metrics_url))
            rate = add_rows(report, "closed loop", {"users": users}, results, wall_s, **engine)
            best = max(best, rate)
        for rate in arguments.rates or [share * best for share in SHARES if best]:
            start = time.monotonic()
            results = await open_loop(server, work, rate, arguments.requests, rng)
            wall_s = time.monotonic() - start
            add_rows(report, "open loop", {"rate_per_s": rate}, results, wall_s)
        report.summary = _summary(server, best)


def _summary(server: Target, best: float) -> dict[str, Any]:
    stats = server.backend.stats
    return {
        "best_requests_per_s": best,
        "num_requests": stats.num_requests,
        "num_failed": stats.num_failed,
        "num_retries": stats.num_retries,
        "num_weight_sends": stats.lora.num_weight_sends,
        "num_adapter_misses": stats.lora.num_misses,
    }


def _ids(text: str) -> tuple[int, ...]:
    return tuple(int(each) for each in text.split(",") if each)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--url", default="", help="host:port of gRPC; without: our own server")
    parser.add_argument("--metrics-url", default="")
    parser.add_argument("--model", default="tensorrt_llm")
    parser.add_argument("--tokenizer", type=Path, help="directory; without: what the model names")
    parser.add_argument("--adapters-dir", type=Path, help="weights to send, by task id")
    parser.add_argument("--adapter-ids", type=_ids, default=(), help="task ids, with commas")
    parser.add_argument("--engine", type=Path, help="of our own server; without: the default one")
    parser.add_argument(
        "--num-adapters", type=int, default=4, help="random ones, on our own server"
    )
    parser.add_argument("--input-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--requests", type=int, default=96, help="at each load, at most")
    parser.add_argument("--users", type=_ids, default=USERS, help="closed loop, with commas")
    parser.add_argument(
        "--rates",
        type=lambda text: [float(each) for each in text.split(",")],
        default=[],
        help=f"requests a second, with commas; without: {SHARES} of the best closed loop",
    )
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.users, arguments.requests, arguments.output_tokens = (1, 4), 8, 8
    report = Report(
        "bench_triton",
        arguments,
        ("tritonclient", "grpcio", "openvino", "nvidia-pytriton", "numpy"),
        note="Streamed over gRPC by compllm's own client, in one process; times from the user's "
        "side. Open-loop latencies count from when a request was due.",
    )
    asyncio.run(measure(arguments, report))
    report.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
