"""What the Triton model `comp_llm` costs over the same path run inside the asking process.

    python -m benchmarks.path.bench_face                     # a server of its own
    python -m benchmarks.path.bench_face --url HOST:8001     # one that serves comp_llm
    python -m benchmarks.path.bench_face --quick             # a smoke run

Both ask the same engine for the same questions, greedily, streamed, in alternating order: once by
`CompLLM` in this process, once by a gRPC stream to `comp_llm`, whose runtime is a process of its
own. `outside` is what a user waits beyond what the path itself reports of a query: in process next
to nothing, at the model its tensors, its responses and the gRPC stream. The engine's own noise is
in `first` and `all`, and not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.report import Report, add_arguments
from benchmarks.triton_load import milliseconds

if TYPE_CHECKING:
    from compllm.pipeline import CompLLM

USERS = (1, 4, 16)
QUESTIONS = (
    "What is the atomic number of iron?",
    "What is the atomic number of iron, and how many chromosomes does a human cell have?",
    "What is 12 plus 7, what is the symbol of sodium, and which organ produces insulin?",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as its user saw it."""

    text: str
    first_s: float  # to the first text of the answer
    total_s: float
    path_s: float  # what the path says that the query took
    num_responses: int

    @property
    def outside_s(self) -> float:
        return self.total_s - self.path_s


Ask = Callable[[str, int], Awaitable[Asked]]


def in_process(llm: CompLLM) -> Ask:
    async def ask(question: str, max_tokens: int) -> Asked:
        from compllm.types import AnswerDelta, AnswerFinished, Query, SamplingParams

        start, first_s, texts = time.monotonic(), 0.0, list[str]()
        async with contextlib.aclosing(
            llm.stream(Query(question, sampling=SamplingParams(max_tokens)))
        ) as events:
            async for event in events:
                if isinstance(event, AnswerDelta):
                    first_s = first_s or time.monotonic() - start
                    texts.append(event.text)
                elif isinstance(event, AnswerFinished):
                    total_s = time.monotonic() - start
                    path_s = event.answer.timings.total_s
        return Asked("".join(texts), first_s, total_s, path_s, len(texts))

    return ask


def through_triton(client: Any) -> Ask:
    async def ask(question: str, max_tokens: int) -> Asked:
        start, first_s, texts, stats = time.monotonic(), 0.0, list[str](), ""

        async def requests() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": "comp_llm", "inputs": question_inputs(question, max_tokens)}

        async for result, error in client.stream_infer(requests()):
            if error is not None:
                raise error
            if (text := result.as_numpy("text_output")[0, 0].decode()) != "":
                first_s = first_s or time.monotonic() - start
                texts.append(text)
            if (last := result.as_numpy("stats_json")) is not None:
                stats = last[0, 0]
        total_s = time.monotonic() - start
        path_s = json.loads(stats)["timings"]["total_ms"] / 1e3
        return Asked("".join(texts), first_s, total_s, path_s, len(texts))

    return ask


def question_inputs(question: str, max_tokens: int, deadline_s: float = 120.0) -> list[Any]:
    """The tensors of a streamed question to `comp_llm`."""
    import numpy as np
    import tritonclient.grpc as triton

    made = []
    for name, kind, value in (
        ("text_input", "BYTES", np.array([[question.encode()]], np.object_)),
        ("max_tokens", "INT32", np.array([[max_tokens]], np.int32)),
        ("stream", "BOOL", np.array([[True]])),
        ("deadline_ms", "INT32", np.array([[1e3 * deadline_s]], np.int32)),
    ):
        tensor = triton.InferInput(name, [1, 1], kind)
        tensor.set_data_from_numpy(value)
        made.append(tensor)
    return made


@contextlib.asynccontextmanager
async def asking(arguments: argparse.Namespace) -> AsyncIterator[dict[str, Ask]]:
    """Both ways to one server: the named one, or one of our own that reuses no prefix, so that who
    asks second gains nothing."""
    import tritonclient.grpc.aio as triton

    from compllm.config import load_config
    from compllm.pipeline import CompLLM
    from compllm.server import triton_server

    async with contextlib.AsyncExitStack() as stack:
        url = arguments.url
        if not url:
            own = triton_server.running(
                arguments.engine,
                options={"is_prefix_reused": False},
                has_face=True,
                is_shared=False,
            )
            url = stack.enter_context(own).grpc_url
        client = await stack.enter_async_context(triton.InferenceServerClient(url))
        config = load_config(overrides={"server.url": url})
        llm = await stack.enter_async_context(await CompLLM.connect(config))
        yield {"in process": in_process(llm), "comp_llm": through_triton(client)}


async def closed_loop(ask: Ask, questions: Sequence[str], users: int, tokens: int) -> list[Asked]:
    """All of them, `users` at a time."""
    left, done = list(reversed(questions)), []

    async def user() -> None:
        while left:
            done.append(await ask(left.pop(), tokens))

    await asyncio.gather(*(user() for _ in range(users)))
    return done


async def measure(arguments: argparse.Namespace, report: Report) -> None:
    rng = random.Random(arguments.seed)
    overheads = {}
    async with asking(arguments) as ways:
        for ask in ways.values():  # warm-up
            await ask(QUESTIONS[0], arguments.max_tokens)
        for users in arguments.users:
            found: dict[str, list[Asked]] = {name: [] for name in ways}
            walls = dict.fromkeys(ways, 0.0)
            for number in range(arguments.rounds):
                questions = _questions(rng, users * arguments.per_user)
                order = list(ways) if number % 2 else list(reversed(ways))
                for name in order:
                    start = time.monotonic()
                    found[name] += await closed_loop(
                        ways[name], questions, users, arguments.max_tokens
                    )
                    walls[name] += time.monotonic() - start
            for name, asked in found.items():
                _add_rows(report, users, name, asked, walls[name])
            overheads[str(users)] = 1e3 * (
                statistics.median(each.outside_s for each in found["comp_llm"])
                - statistics.median(each.outside_s for each in found["in process"])
            )
    report.summary = {"overhead_ms_by_users": overheads}


def _questions(rng: random.Random, count: int) -> list[str]:
    """All different, since alike ones share their sub-queries' requests."""
    return [f"{QUESTIONS[k % len(QUESTIONS)]} ({rng.randrange(10**9)})" for k in range(count)]


def _add_rows(report: Report, users: int, name: str, asked: Sequence[Asked], wall_s: float) -> None:
    report.add(
        "load",
        users=users,
        path=name,
        queries=len(asked),
        queries_per_s=len(asked) / wall_s,
        responses_per_query=statistics.mean(each.num_responses for each in asked),
    )
    report.add(
        "latency",
        users=users,
        path=name,
        **milliseconds("outside", (each.outside_s for each in asked)),
        **milliseconds("first", (each.first_s for each in asked)),
        **milliseconds("all", (each.total_s for each in asked)),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--url", default="", help="host:port of gRPC; without: our own server")
    parser.add_argument("--engine", type=Path, help="of our own server; without: the default one")
    parser.add_argument(
        "--users",
        type=lambda text: tuple(int(each) for each in text.split(",")),
        default=USERS,
        help="at a time, with commas",
    )
    parser.add_argument("--rounds", type=int, default=6, help="the order alternates")
    parser.add_argument("--per-user", type=int, default=4, help="questions, in each round")
    parser.add_argument("--max-tokens", type=int, default=32, help="of the answer")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.users, arguments.rounds, arguments.per_user = (1, 2), 1, 1
        arguments.max_tokens = 8
    report = Report(
        "bench_face",
        arguments,
        ("tritonclient", "grpcio", "openvino", "nvidia-pytriton", "numpy"),
        note="Both ways share one engine and one machine. 'outside' is a user's waiting beyond the "
        "path's own total; its median's difference is the model's overhead.",
    )
    asyncio.run(measure(arguments, report))
    report.finish()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
