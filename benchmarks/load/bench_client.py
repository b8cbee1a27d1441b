"""The client's promises, counted on a real Triton: storms of adapters, and random cancels.

    python -m benchmarks.load.bench_client [--cancels 1000] [--engine DIR]

Storm: more adapters than the engine's LoRA cache holds, all asked for at once, by 64 requests.
Reported are failures, answers of a wrong adapter, weights sent again, and the engine's own
evictions. An answer counts as a wrong adapter's when it has more of its beginning in common with
what another adapter says to the same prompt alone than with what its own says: an int8 engine's
texts may part late for other reasons. Each storm has a client of its own, which knows nothing of
the cache.

Cancels: one to four requests at a time, each ended after a random while in one of three ways: its
iterator closed, its task cancelled, the connection of all dropped. Reported are the steps that the
engine took between hearing of it and its end (its own gauge), the tokens that no client received,
and the time until the gauge of active requests was seen at 0.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.report import Report, add_arguments
from benchmarks.triton_load import (
    GENERATED,
    Timed,
    idle_metrics,
    milliseconds,
    random_adapters,
    timed,
)

if TYPE_CHECKING:
    from compllm.backend import GenerateRequest
    from compllm.backends.lora_client import AdapterWeights
    from compllm.backends.tokenizer import Tokenizer
    from compllm.backends.triton import TritonBackend
    from compllm.server.triton_state import ServerInfo

NUM_ADAPTERS, NUM_SLOTS, NUM_REQUESTS = 8, 2, 64
WAYS = ("iterator closed", "task cancelled", "connection dropped")
LONG = 400  # tokens: no caller waits for their end


def _request(
    name: str, adapter_id: int | None, max_tokens: int, *, is_streamed: bool = False
) -> GenerateRequest:
    from compllm.backend import GenerateRequest, Segment
    from compllm.types import SamplingParams

    # No end token in sight of random adapters; without them this prompt goes on for long.
    prompt = (Segment("Count: one, two, three, four,"),)
    sampling = SamplingParams(max_tokens)
    return GenerateRequest(name, prompt, sampling, adapter_id=adapter_id, is_streamed=is_streamed)


def _nearest(text: str, alone: Mapping[int, str], own: int) -> int:
    """The adapter whose text begins most like this one; its own in doubt."""

    def likeness(each: int) -> tuple[int, bool]:
        pairs = zip(text, alone[each], strict=False)
        return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))), each == own

    return max(alone, key=likeness)


async def storm(
    info: ServerInfo, tokenizer: Tokenizer, weights: AdapterWeights, report: Report, rounds: int
) -> None:
    from compllm.backends.attempts import ClientOptions
    from compllm.backends.triton import TritonBackend

    patient = ClientOptions(adapter_wait_s=600.0)  # a slow machine is no failure of the client
    ids = range(1, NUM_ADAPTERS + 1)
    quiet = TritonBackend(info.grpc_url, tokenizer, weights)
    alone = {each: (await timed(quiet, _request("alone", each, 24))).text for each in ids}
    await quiet.aclose()
    assert len(set(alone.values())) == NUM_ADAPTERS, "the adapters cannot be told apart"
    for number in range(rounds):
        before = await idle_metrics(info.metrics_url)
        client = TritonBackend(info.grpc_url, tokenizer, weights, options=patient)
        order = [ids[k % NUM_ADAPTERS] for k in range(NUM_REQUESTS)]
        random.Random(number).shuffle(order)
        start = time.monotonic()
        answers = await asyncio.gather(
            *(timed(client, _request(f"s{k}", each, 24)) for k, each in enumerate(order))
        )
        wall_s = time.monotonic() - start
        capacity, counts = client.lora().capacity, client.stats.lora
        await client.aclose()
        num_tokens = sum(each.num_tokens for each in answers)
        after = await idle_metrics(info.metrics_url, before.get(GENERATED, 0) + num_tokens)
        print(f"storm {number + 1}: {wall_s:.1f} s", file=sys.stderr, flush=True)
        report.add(
            "storm",
            round=number,
            requests=NUM_REQUESTS,
            failed=sum(bool(each.error) for each in answers),
            wrong_adapter=_num_wrong(answers, order, alone),
            same_text=sum(a.text == alone[each] for a, each in zip(answers, order, strict=True)),
            weight_sends=counts.num_weight_sends,
            resends=counts.num_weight_sends - NUM_ADAPTERS,
            evictions=_rise(before, after, "compllm_lora_evictions_total"),
            cache_full=counts.num_refusals,
            misses=counts.num_misses,
            learnt_slots=capacity,
            wall_s=wall_s,
        )


def _num_wrong(answers: Sequence[Timed], order: Sequence[int], alone: Mapping[int, str]) -> int:
    return sum(
        not answer.error and _nearest(answer.text, alone, own) != own
        for answer, own in zip(answers, order, strict=True)
    )


def _rise(before: Mapping[str, float], after: Mapping[str, float], name: str) -> int:
    return int(after.get(name, 0) - before.get(name, 0))


async def cancels(
    info: ServerInfo,
    tokenizer: Tokenizer,
    weights: AdapterWeights,
    report: Report,
    count: int,
    seed: int,
) -> None:
    """`count` requests in all are cancelled."""
    from compllm.backends.triton import TritonBackend

    rng = random.Random(seed)
    backend = TritonBackend(info.grpc_url, tokenizer, weights)
    to_zero: dict[str, list[float]] = {way: [] for way in WAYS}
    wasted: dict[str, list[float]] = {way: [] for way in WAYS}
    num_cancels: Counter[str] = Counter()
    try:
        while num_cancels.total() < count:
            way = rng.choice(WAYS)
            size = min(rng.randint(1, 4), count - num_cancels.total())
            client = backend
            if way == "connection dropped":
                client = TritonBackend(info.grpc_url, tokenizer, weights)
            before = await idle_metrics(info.metrics_url)
            requests = [
                _request(
                    f"c{num_cancels.total()}-{k}",
                    rng.choice((None, 1, 2)),
                    LONG,
                    is_streamed=True,
                )
                for k in range(size)
            ]
            seen = await _give_up(client, requests, way, rng)
            start = time.monotonic()
            after = await idle_metrics(info.metrics_url, before.get(GENERATED, 0) + seen)
            to_zero[way].append(time.monotonic() - start)
            wasted[way].append((_rise(before, after, GENERATED) - seen) / size)
            num_cancels[way] += size
            if num_cancels.total() // 100 > (num_cancels.total() - size) // 100:
                print(f"{num_cancels.total()} cancels", file=sys.stderr, flush=True)
    finally:
        await backend.aclose()
    final = await idle_metrics(info.metrics_url)
    for way in WAYS:
        if not num_cancels[way]:
            continue
        report.add(
            "cancels",
            way=way,
            cancels=num_cancels[way],
            tokens_for_nobody_mean=sum(wasted[way]) / len(wasted[way]),
            tokens_for_nobody_max=max(wasted[way]),
            **milliseconds("to_zero", to_zero[way]),
        )
    report.summary["max_steps_to_cancel"] = final["compllm_max_steps_to_cancel"]
    report.summary["active_at_the_end"] = final["nv_trt_llm_request_metrics active"]
    report.summary["num_cancels"] = num_cancels.total()


async def _give_up(
    client: TritonBackend, requests: Sequence[GenerateRequest], way: str, rng: random.Random
) -> int:
    """Ask them all, end them all in one way. Gives the tokens that had come."""
    num_seen = 0
    reached = asyncio.Event()
    is_dropped = way == "connection dropped"

    async def one(request: GenerateRequest, num_tokens: int) -> None:
        nonlocal num_seen
        async with contextlib.aclosing(client.generate(request)) as chunks:
            async for chunk in chunks:
                num_seen += chunk.num_tokens
                num_tokens -= chunk.num_tokens
                if num_tokens <= 0 and way == "iterator closed":
                    return
                if num_tokens <= 0:
                    reached.set()

    tasks = [asyncio.create_task(one(each, rng.randint(1, 12))) for each in requests]
    if way != "iterator closed":
        await reached.wait()
        if is_dropped:
            await client.aclose()
        else:
            for task in tasks:
                task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return num_seen


async def measure(arguments: argparse.Namespace, report: Report) -> None:
    from compllm.backends.triton import TritonBackend
    from compllm.formats.lora_tensors import read_base_shape
    from compllm.server import triton_server

    options = {"max_adapters": NUM_SLOTS, "is_lora_cache": True}
    with triton_server.running(arguments.engine, options=options, is_shared=False) as info:
        base = read_base_shape(Path(info.engine_dir))
        weights = random_adapters(base, NUM_ADAPTERS, arguments.seed, scale=0.1)
        connected = await TritonBackend.connect(info.grpc_url)
        tokenizer = connected.tokenizer
        await connected.aclose()
        await storm(info, tokenizer, weights, report, arguments.storms)
        await cancels(info, tokenizer, weights, report, arguments.cancels, arguments.seed)
        report.summary["storm"] = _storm_summary(report.tables["storm"])


def _storm_summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "failed": sum(each["failed"] for each in rows),
        "wrong_adapter": sum(each["wrong_adapter"] for each in rows),
        "resends_over_evictions_at_most": max(each["resends"] - each["evictions"] for each in rows),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--engine", type=Path, help="without: the default one")
    parser.add_argument("--storms", type=int, default=5)
    parser.add_argument("--cancels", type=int, default=1000)
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.storms, arguments.cancels = 1, 30
    report = Report(
        "bench_client",
        arguments,
        ("tritonclient", "grpcio", "openvino", "nvidia-pytriton", "numpy"),
        note=f"{NUM_ADAPTERS} random adapters, {NUM_SLOTS} places in the cache. Steps of the "
        "engine between its hearing of a cancel and the request's end: see the summary.",
    )
    asyncio.run(measure(arguments, report))
    report.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
