"""What filling a prompt's known prefix ahead gains the node, and what it costs those who decode.

    python -m benchmarks.path.bench_prewarm            # the embedded engine, a server of its own
    python -m benchmarks.path.bench_prewarm --smoke    # seconds; proves little

A parent and its child, then two leaves and the aggregator, through the real path and engine. The
child's sub-query is as long as the column says; no two queries share one. The modes off, on and
auto take turns; every response has the same number of tokens. All times are the engine's own.
`bystanders`: requests of others that decode meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.report import Report, add_arguments

if TYPE_CHECKING:
    from compllm.backend import Chunk, GenerateRequest
    from compllm.backends.client_stats import RequestStats
    from compllm.backends.triton import TritonBackend
    from compllm.pipeline import CompLLM
    from compllm.types import Usage

MODES = ("off", "on", "auto")
LENGTHS = (8, 24, 64, 128, 256)  # tokens of the child's sub-query
BYSTANDERS = (0, 2)
MAX_LINE_CHARS = 4000  # 256 of the words are some 1,800
NODE_TOKENS, BYSTANDER_TOKENS = 48, 96
MEASURED = "medians by length of the sub-query, bystanders and mode"
GAINED = "on and auto against off"


class FixedLength:
    """The engine, with every response as long as it may be: modes differ in nothing else."""

    def __init__(self, backend: TritonBackend) -> None:
        self._backend = backend

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Chunk]:
        from compllm.backend import open_chunks

        sampling = replace(request.sampling, min_tokens=request.sampling.max_tokens)
        async with open_chunks(self._backend, replace(request, sampling=sampling)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def aclose(self) -> None:
        """The bench's own: several paths share it."""


@dataclass(slots=True)
class Bench:
    """One server, a path for each mode, and what its requests took, by their id."""

    backend: FixedLength
    paths: Mapping[str, CompLLM]
    ended: dict[str, RequestStats]
    texts: Any  # tokens -> a text of about so many that no other begins with
    num_asked: int = 0

    async def run(self, mode: str, length: int, bystanders: int, shape: str) -> dict[str, float]:
        """One query's numbers. Tokens are the same in every mode, texts are not: the cache would
        know them."""
        from compllm.plan import PlanLimits, parse_plan
        from compllm.types import Query

        self.num_asked += 1
        name = f"b{self.num_asked}"
        if shape == "chain":
            lines = f"1 | {self.texts(8)}?\n2 <1> | {self.texts(length)}?"
        else:
            lines = f"1 | {self.texts(8)}?\n2 | {self.texts(8)}?"
        limits = PlanLimits(max_line_chars=MAX_LINE_CHARS)
        question = Query(self.texts(8 if shape == "chain" else length) + "?", id=name)
        async with asyncio.TaskGroup() as tasks:
            for number in range(bystanders):
                tasks.create_task(self.stand_by(f"{name}x-{number}"))
            answer = await self.paths[mode].ask(question, plan=parse_plan(lines, limits))
        if answer.is_partial:
            raise RuntimeError(f"a measured query failed: {answer.error}")
        reader = self.usage(f"{name}-2-0" if shape == "chain" else f"{name}-answer")
        parent = self.usage(f"{name}-1-0")
        others = [self.usage(f"{name}x-{number}") for number in range(bystanders)]
        warmed = [each for each in self.ended if each.startswith(f"{name}-warm")]
        return {
            "first_token_ms": reader.first_token_s * 1e3,
            "reused_blocks": reader.kv_reused_blocks,
            "input_tokens": reader.num_input_tokens,
            "parent_ms_per_token": token_ms(parent),
            "bystander_ms_per_token": statistics.fmean(map(token_ms, others)) if others else 0.0,
            "total_ms": answer.timings.total_s * 1e3,
            "prefills": len(warmed),
        }

    async def stand_by(self, name: str) -> None:
        from compllm.backend import GenerateRequest, Segment, collect
        from compllm.types import SamplingParams

        prompt = (Segment(self.texts(16)),)
        await collect(self.backend, GenerateRequest(name, prompt, SamplingParams(BYSTANDER_TOKENS)))

    def usage(self, name: str) -> Usage:
        found = self.ended[name].usage
        assert found is not None
        return found


def token_ms(usage: Usage) -> float:
    return (usage.total_s - usage.first_token_s) / (usage.num_output_tokens - 1) * 1e3


@contextlib.asynccontextmanager
async def opened(arguments: argparse.Namespace) -> AsyncIterator[Bench]:
    from benchmarks.triton_load import prompts
    from compllm.backends.triton import TritonBackend
    from compllm.catalogue import Catalogue, RouterSettings
    from compllm.config import load_config
    from compllm.pipeline import CompLLM
    from compllm.prompts import TEMPLATES
    from compllm.server import triton_server
    from compllm.testing import HashingEncoder
    from compllm.types import Expert

    ended: dict[str, RequestStats] = {}
    # Without a system text, as trained experts read.
    base = Expert("base", "anything", "")
    catalogue = Catalogue(
        path=Path("experts.toml"),
        base=base,
        template=TEMPLATES["chatml"],
        adapters=(),
        experts=(Expert("expert", "all", ""),),
        examples=(("What?",),),
        router=RouterSettings(-1.0, HashingEncoder.id),
        out_of_domain=(),
    )
    with triton_server.running(arguments.engine, is_shared=False) as info:
        connected = await TritonBackend.connect(info.grpc_url)
        tokenizer = connected.tokenizer
        await connected.aclose()

        def record(stats: RequestStats) -> None:
            ended[stats.id] = stats

        ours = TritonBackend(info.grpc_url, tokenizer, on_request=record)
        rng = random.Random(arguments.seed)
        words = prompts(tokenizer, 4096, 1, rng)

        def text(num_tokens: int) -> str:
            return " ".join(rng.choice(words) for _ in range(num_tokens))

        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(ours.aclose)
            backend = FixedLength(ours)
            paths = {}
            for mode in MODES:
                values = {
                    "prewarm.mode": mode,
                    "compose.policy": "auto",
                    "limits.max_node_tokens": NODE_TOKENS,
                    "limits.max_answer_tokens": 8,
                    "limits.max_line_chars": MAX_LINE_CHARS,
                }
                llm = CompLLM(backend, HashingEncoder(), catalogue, load_config(None, values, {}))
                paths[mode] = await stack.enter_async_context(llm)
            yield Bench(backend, paths, ended, text)


async def measure(report: Report, arguments: argparse.Namespace) -> None:
    lengths, rounds = ((8, 64), 1) if arguments.quick else (LENGTHS, arguments.rounds)
    async with opened(arguments) as bench:
        for shape in ("chain", "answer"):
            for mode in MODES:  # the first requests compile, and teach `auto`
                await bench.run(mode, 8, 0, shape)
            for length in lengths:
                for bystanders in BYSTANDERS:
                    runs: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
                    for number in range(rounds):
                        for place in range(len(MODES)):  # each mode is first equally often
                            mode = MODES[(number + place) % len(MODES)]
                            runs[mode].append(await bench.run(mode, length, bystanders, shape))
                    add_rows(report, shape, length, bystanders, runs)
        for mode, llm in bench.paths.items():
            stats = llm.stats().prewarm
            report.add(
                "what became of prefixes",
                mode=mode,
                sent=stats.num_sent,
                done=stats.num_done,
                overtaken=stats.num_cancelled,
                short=stats.num_short,
                busy=stats.num_busy,
                dear=stats.num_dear,
                unmeasured=stats.num_unmeasured,
            )


def add_rows(
    report: Report,
    shape: str,
    length: int,
    bystanders: int,
    runs: Mapping[str, list[dict[str, float]]],
) -> None:
    where = {"reader": shape, "sub_query_tokens": length, "bystanders": bystanders}
    medians = {mode: medians_of(values) for mode, values in runs.items()}
    for mode, cells in medians.items():
        report.add(MEASURED, **where, mode=mode, **cells)
    off = medians["off"]
    for mode in MODES[1:]:
        on = medians[mode]
        report.add(
            GAINED,
            **where,
            mode=mode,
            more_reused_blocks=round(on["reused_blocks"] - off["reused_blocks"], 2),
            sooner_ms=round(off["first_token_ms"] - on["first_token_ms"], 2),
            parent_later_ms=round(
                (on["parent_ms_per_token"] - off["parent_ms_per_token"]) * (NODE_TOKENS - 1), 2
            ),
            bystanders_slower=round(
                on["bystander_ms_per_token"] / (off["bystander_ms_per_token"] or 1.0) - 1, 4
            )
            if bystanders
            else None,
            query_speedup=round(off["total_ms"] / on["total_ms"], 3),
        )


def medians_of(runs: Iterable[Mapping[str, float]]) -> dict[str, float]:
    runs = tuple(runs)
    return {name: round(statistics.median(run[name] for run in runs), 3) for name in runs[0]}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--smoke", action="store_true", dest="quick", help="the same as --quick")
    parser.add_argument("--engine", type=Path, help="an embedded engine; default: the built one")
    parser.add_argument("--rounds", type=int, default=15, help="queries of each mode and column")
    arguments = parser.parse_args(argv)
    report = Report(
        "bench_prewarm",
        arguments,
        ("openvino", "tritonclient"),
        "sooner_ms: the reader's first token, from its arrival at the engine. A gain for the query "
        "is only what is sooner beyond what the parent is later.",
    )
    asyncio.run(measure(report, arguments))
    rows = report.tables[GAINED]
    for mode in MODES[1:]:
        own = [row for row in rows if row["mode"] == mode]
        report.summary[mode] = {
            "best_query_speedup": max(float(row["query_speedup"] or 0) for row in own),
            "median_query_speedup": statistics.median(
                float(row["query_speedup"] or 0) for row in own
            ),
            "worst_bystander_slowdown": max(float(row["bystanders_slower"] or 0) for row in own),
        }
    report.finish()


if __name__ == "__main__":
    main()
