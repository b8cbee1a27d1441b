"""What each overlap gains: switched off one at a time, and all together, on the real engine.

    python -m benchmarks.path.bench_ablation                         # some shapes, about 9 minutes
    python -m benchmarks.path.bench_ablation --graphs break=FILE --limit 6
    python -m benchmarks.path.bench_ablation --part alone --smoke

alone  one query at a time: streamed planning, dataflow against levels and sequential.
load   queries arrive at random at a share of the capacity, two at a time with first sub-queries in
       common (a pair arrives together): those again, query-aware admission, single-flight, all.
gate   questions that need no plan, with the plan-or-answer gate and without.

Every round runs all variants, each on the same queries with the same tokens (checked), in an order
that rotates; a variant is compared with "all on" of its own round. Bounds count the engine's own
step times, measured around each round. Writes bench_ablation.json, .md and .png.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.path import bench_replay
from benchmarks.path.ablation_tables import add_tables, plot
from benchmarks.path.ablation_variants import (
    ALL_ON,
    VARIANTS,
    Part,
    Variant,
    neighbours,
    one_step,
    salt_of,
)
from benchmarks.report import RESULTS, Report, Row, add_arguments
from benchmarks.tables import write_markdown

if TYPE_CHECKING:
    from compllm.lab.engine_profile import EngineProfile
    from compllm.lab.replay.drive import Ran, ReplaySettings
    from compllm.lab.replay.graphs import ReplayGraph
    from compllm.lab.replay.runner import ReplayLLM

PACKAGES = ("openvino", "nvidia-pytriton", "tritonclient", "grpcio", "numpy")
NOTE = (
    "ratio: this variant's time over that of 'all on', mean of the pairs, with its 95 % interval "
    "(bootstrap over pairs: the same query of the same round; load: over rounds); above 1 the "
    "overlap gains. bound_ms: what graph and engine allow a query that has the engine to itself, "
    "all overlaps counted; structural: nodes over depth, weighted by tokens. Each "
    "variant has the same tokens of plan, nodes and answer."
)
_LOAD, _GATE = "load", "gate"

# The capacity is found by a runtime of its own: nothing of that pass is in a variant's counters.
_CAPACITY = replace(ALL_ON, name="capacity")

# What needs a sequential time that was not measured.
_ESTIMATED = ("sequential_ms", "sequential_is", "reached_speedup", "reached_of_structural")

Record = dict[str, Any]
LLMs = Mapping[str, "ReplayLLM"]  # by the variant's name


@dataclass(frozen=True, slots=True)
class Work:
    """What every variant of a part does."""

    part: Part
    graphs: Sequence[ReplayGraph]
    settings: ReplaySettings
    num_rounds: int


@contextlib.asynccontextmanager
async def opened(part: Part, url: str, arguments: argparse.Namespace) -> AsyncIterator[LLMs]:
    """A runtime for each variant, all on one server and one encoder."""
    from compllm.backends.triton import TritonBackend
    from compllm.catalogue import load_catalogue
    from compllm.config import GateConfig, load_config
    from compllm.gc_freeze import freeze_startup_objects
    from compllm.lab.replay.runner import ReplayLLM
    from compllm.routing.embed import SentenceEncoder

    model, source = bench_replay.load_encoder()
    async with contextlib.AsyncExitStack() as stack:
        llms = {}
        for variant in (*VARIANTS[part], *([_CAPACITY] if part == _LOAD else [])):
            values = {**variant.overrides(), "compose.policy": "always"}
            if part == _LOAD:
                values["limits.max_in_flight"] = arguments.max_in_flight
            config = load_config(arguments.config, values)
            catalogue = load_catalogue(Path(config.catalogue) if config.catalogue else None)
            # Routing is part of what is timed: no vector is cached.
            encoder = SentenceEncoder(model, source, cache_size=0)
            llm = ReplayLLM(await TritonBackend.connect(url), encoder, catalogue, config)
            llm.use_admission(variant.admission)
            llm.use_gate(GateConfig(mode=variant.gate, whole_to_base=False))
            llms[variant.name] = await stack.enter_async_context(llm)
        freeze_startup_objects()
        yield llms


async def bench(arguments: argparse.Namespace, report: Report) -> None:
    records: list[Record] = []
    switches: list[Row] = []
    with contextlib.ExitStack() as stack:
        url = arguments.url or stack.enter_context(bench_replay.own_server(arguments.engine))
        for part in arguments.part or VARIANTS:
            async with opened(part, url, arguments) as llms:
                work = await make_work(part, llms, arguments, report)
                before = {name: counters_of(llm) for name, llm in llms.items()}
                records += await run(work, llms)
                switches += [switches_of(part, each.name, llms, before) for each in VARIANTS[part]]
    report.summary["records"] = records
    add_tables(report, records)
    for row in switches:
        report.add("what the switches did in the rounds", **row)


async def make_work(part: Part, llms: LLMs, arguments: argparse.Namespace, report: Report) -> Work:
    """The queries, after a first pass that pays for what a first query pays for."""
    from compllm.config import load_config
    from compllm.lab.replay.drive import ReplaySettings, replay
    from compllm.lab.replay.workload import TokenLengths

    sets = bench_replay.read_sets(arguments, load_config(arguments.config))
    graphs: Sequence[ReplayGraph] = [graph for each in sets.values() for graph in each]
    settings = ReplaySettings(
        lengths=TokenLengths(arguments.tokens_per_node),
        answer_tokens=arguments.answer_tokens,
        overhead="plan+compose",
        seed=arguments.seed,
    )
    if part == _GATE:
        graphs = one_step(bench_replay.QUESTIONS[: 2 if arguments.quick else None])
    warm = replace(settings, salt="Z Z")
    for llm in llms.values():
        await replay(llm, graphs[:1], warm, lambda _: None)
    if part == _LOAD:
        many = neighbours(graphs, 2 * arguments.queries)
        capacity_qps = await closed_loop(llms[_CAPACITY.name], many, settings, arguments)
        graphs = many[: arguments.queries]
        settings = replace(settings, rate_qps=arguments.load * capacity_qps)
        report.summary["capacity_qps"] = round(capacity_qps, 4)
        report.summary["rate_qps"] = round(arguments.load * capacity_qps, 4)
    num_rounds = arguments.load_rounds if part == _LOAD else arguments.rounds
    return Work(part, graphs, settings, num_rounds)


async def closed_loop(
    llm: ReplayLLM,
    graphs: Sequence[ReplayGraph],
    settings: ReplaySettings,
    arguments: argparse.Namespace,
) -> float:
    """Queries a second with enough of them under way that the engine has no pause."""
    from compllm.lab.replay.drive import replay

    ran: list[Ran] = []
    full = replace(settings, concurrency=2 * arguments.max_in_flight, salt="Y Y")
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    await replay(llm, graphs, full, ran.append)
    check([each for each in ran if each.error])
    return len(ran) / (loop.time() - start_s)


async def run(work: Work, llms: LLMs) -> list[Record]:
    """A record for each query of each variant and round."""
    from compllm.lab.replay.step_times import mean_profile

    records: list[Record] = []
    before = await measured(work, llms)
    for number in range(work.num_rounds):
        found = await run_round(work, llms, number)
        behind = await measured(work, llms)
        profile = mean_profile(before, behind)
        for variant, settings, ran in found:
            records += [record_of(work, variant, number, each, settings, profile) for each in ran]
        before = behind
        print(f"{work.part}: round {number + 1} of {work.num_rounds}", file=sys.stderr, flush=True)
    return records


async def run_round(
    work: Work, llms: LLMs, number: int
) -> list[tuple[Variant, ReplaySettings, list[Ran]]]:
    """All variants, one after another; each is first as often as any other."""
    from compllm.lab.replay.drive import replay

    variants = VARIANTS[work.part]
    found = []
    for place in range(len(variants)):
        variant = variants[(number + place) % len(variants)]
        salt = salt_of(work.part, variant, number)
        settings = replace(work.settings, salt=salt, seed=work.settings.seed + number)
        ran: list[Ran] = []
        await replay(
            llms[variant.name],
            work.graphs,
            variant.replayed(settings),
            ran.append,
            together=2 if work.part == _LOAD else 1,  # pairs, or no query could join what is shared
        )
        found.append(
            (variant, variant.replayed(settings), sorted(ran, key=lambda each: each.index))
        )
    return found


async def measured(work: Work, llms: LLMs) -> EngineProfile:
    from compllm.lab.replay.step_times import measure

    llm = llms[ALL_ON.name]
    width = max(graph.width for graph in work.graphs)
    return await measure(llm.forced.inner, llm.catalogue, width + 1)


def record_of(
    work: Work,
    variant: Variant,
    number: int,
    ran: Ran,
    settings: ReplaySettings,
    profile: EngineProfile,
) -> Record:
    """The replay's own record, with what repeats itself left out."""
    from compllm.lab.replay.records import make_record

    record = make_record(ran, settings, profile)
    nodes = record.pop("nodes")
    for key in ("question", "handover_ms", *_ESTIMATED):
        record.pop(key, None)
    # From when a query was due: a client that falls behind hides nothing.
    latency_ms = round(record.get("total_ms", 0.0) + record["late_ms"], 3)
    return {
        "part": work.part,
        "variant": variant.name,
        "round": number,
        **record,
        "latency_ms": latency_ms,
        "is_direct": ran.answer is not None and ran.answer.plan.is_direct,
        "node_tokens": [node["num_output_tokens"] for node in nodes],
        "prompt_tokens": sum(node["num_input_tokens"] for node in nodes),
        "reused_blocks": sum(node["kv_reused_blocks"] for node in nodes),
        "num_shared": sum(node.get("is_shared", False) for node in nodes),
    }


def counters_of(llm: ReplayLLM) -> dict[str, float]:
    """What its switches had to do since the start, by the runtime's own counters."""
    stats = llm.stats()
    loads = stats.engines.values()
    return {
        "admitted": sum(each.num_admitted for each in loads),
        "waited": sum(each.num_waited for each in loads),
        "worst_wait_ms": round(1e3 * max(each.max_wait_s for each in loads), 1),
        "flights": stats.sharing.num_flights,
        "joined": stats.sharing.num_joined,
    }


def switches_of(
    part: Part, name: str, llms: LLMs, before: Mapping[str, Mapping[str, float]]
) -> Row:
    """What each switch had to do in the rounds, `before` which a first pass had run."""
    first, now = before[name], counters_of(llms[name])
    row: Row = {"part": part, "variant": name, **{key: now[key] - first[key] for key in now}}
    # The longest of all waits is no sum: the rounds' own is known where it is longer than what the
    # first pass, which is one query alone, had waited.
    is_known = now["worst_wait_ms"] > first["worst_wait_ms"] or first["worst_wait_ms"] == 0
    return row | {"worst_wait_ms": now["worst_wait_ms"] if is_known else None}


def check(failed: Sequence[Ran]) -> None:
    if failed:
        raise SystemExit(
            f"{len(failed)} queries failed, the first, {failed[0].graph.id}: {failed[0].error}"
        )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--smoke", dest="quick", action="store_true", help="the same as --quick")
    parser.add_argument("--part", action="append", choices=tuple(VARIANTS))
    parser.add_argument("--graphs", action="append", metavar="NAME=FILE", help="default: shapes")
    parser.add_argument("--limit", type=int, default=4, help="graphs of each set")
    parser.add_argument("--rounds", type=int, default=3, help="of all but part load")
    parser.add_argument("--load-rounds", type=int, default=4, help="of part load")
    parser.add_argument("--queries", type=int, default=6, help="of a round of part load")
    parser.add_argument("--load", type=float, default=0.9, help="share of capacity, part load")
    parser.add_argument("--max-in-flight", type=int, default=4, help="requests, part load")
    parser.add_argument("--tokens-per-node", type=int, default=24)
    parser.add_argument("--answer-tokens", type=int, default=24)
    parser.add_argument("--url", default="", help="host:port of gRPC; without: our own server")
    parser.add_argument("--engine", type=Path, help="of our own server; without: the default one")
    parser.add_argument("--config", type=Path, help="settings as TOML")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.limit, arguments.rounds, arguments.load_rounds, arguments.queries = 1, 1, 1, 2
        arguments.tokens_per_node = arguments.answer_tokens = 4
    report = Report("bench_ablation", arguments, PACKAGES, NOTE)
    asyncio.run(bench(arguments, report))
    report.finish(plot)
    if not (arguments.quick and arguments.out == RESULTS):
        write_markdown(report, "What each overlap gains", arguments.out, NOTE)
    return 0 if report.summary["is_equal_work"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
