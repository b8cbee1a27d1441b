"""Every policy on the same graphs in one run: sequential, levels, dataflow, polling, and the bound.

    python -m benchmarks.path.bench_replay --graphs strategyqa=FILE --graphs break=FILE [--limit 30]

Graph by graph, policy by policy, in an order that rotates, so that a drift of the machine meets all
of them alike. Part `stage` is the expert stage alone (plan and routes are given, no answer is
composed), part `whole` writes the gold plan through the generator and composes an answer. Each run
has a salt of its own before its questions: no policy finds another's prefix in the engine's cache.
The time of an engine step is measured again every few graphs. A graph's bound uses the mean of the
measurement before it and the one after it. The report also gives the bound of the same requests on
the built-in profile `gpu-like`, an engine whose step takes as long for eight requests as for one.
That engine is hypothetical: it shows how much of a missed aim is due to the two cores. Without
--graphs: a chain, a diamond, a fan-in, and a mix of them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import string
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.path.replay_tables import NOISE, PARTS, POLICIES, Record, plot, tabulate
from benchmarks.report import Report, add_arguments

if TYPE_CHECKING:
    from compllm.config import Config
    from compllm.lab.engine_profile import EngineProfile
    from compllm.lab.replay.drive import ReplaySettings
    from compllm.lab.replay.graphs import ReplayGraph
    from compllm.lab.replay.runner import ReplayLLM


LLMs = Mapping[str, "ReplayLLM"]  # by part

# Parents by node, for a run without a data set.
SHAPES: dict[str, list[list[int]]] = {
    "chain": [[], [0], [1]],
    "diamond": [[], [0], [0], [1, 2]],
    "fan in": [[], [], [], [0, 1, 2]],
    "mixed": [[], [], [0], [1], [2, 3]],
}
QUESTIONS = (
    "What is the atomic number of iron?",
    "Which gas do plants take in?",
    "What is 12 times 7?",
    "Which organ pumps blood?",
    "How many sides has a hexagon?",
)


def shapes() -> list[ReplayGraph]:
    from compllm.lab.replay.graphs import ReplayGraph
    from compllm.plan import make_plan
    from compllm.types import SubQuery

    return [
        ReplayGraph(
            name,
            f"What do these facts tell of a {name}?",
            make_plan(
                [
                    SubQuery(node, QUESTIONS[node - 1], tuple(parent + 1 for parent in above))
                    for node, above in enumerate(parents, start=1)
                ]
            ),
        )
        for name, parents in SHAPES.items()
    ]


def read_sets(arguments: argparse.Namespace, config: Config) -> dict[str, list[ReplayGraph]]:
    """Samples by the seed, of graphs that leave a policy anything to decide: two nodes or more."""
    from compllm.errors import ConfigError
    from compllm.lab.replay.graphs import read_graphs

    if not arguments.graphs:
        return {"shapes": shapes()[: arguments.limit]}
    found = {}
    for given in arguments.graphs:
        name, is_named, path = given.partition("=")
        if not is_named:
            raise ConfigError(f"--graphs is {given!r}: expected NAME=FILE, as in break=FILE.jsonl")
        graphs = read_graphs(Path(path), config.limits.plan)
        graphs = [graph for graph in graphs if len(graph.plan.sub_queries) > 1]
        rng = random.Random(f"{arguments.seed} {name}")
        found[name] = rng.sample(graphs, min(arguments.limit, len(graphs)))
    return found


# ---- running


@contextlib.asynccontextmanager
async def opened(arguments: argparse.Namespace) -> AsyncIterator[LLMs]:
    """An LLM for each part, on the server at the given address or one of our own."""
    from compllm.backends.triton import TritonBackend
    from compllm.catalogue import load_catalogue
    from compllm.config import load_config
    from compllm.gc_freeze import freeze_startup_objects
    from compllm.lab.replay.drive import ReplaySettings
    from compllm.lab.replay.runner import ReplayLLM
    from compllm.routing.embed import SentenceEncoder

    model, source = load_encoder()
    async with contextlib.AsyncExitStack() as stack:
        url = arguments.url or stack.enter_context(own_server(arguments.engine))
        llms = {}
        for part, overhead in PARTS.items():
            settings = ReplaySettings(overhead=overhead)  # type: ignore[arg-type]
            values = {"compose.policy": settings.compose_policy, "sharing.is_on": False}
            config = load_config(arguments.config, values)
            catalogue = load_catalogue(Path(config.catalogue) if config.catalogue else None)
            # The same sub-queries come again under each policy: where routing is part of what is
            # timed, nothing of them may be remembered.
            encoder = SentenceEncoder(model, source, cache_size=4096 if part == "stage" else 0)
            backend = await TritonBackend.connect(url)
            llm = ReplayLLM(backend, encoder, catalogue, config)
            llms[part] = await stack.enter_async_context(llm)
        freeze_startup_objects()
        yield llms


def load_encoder() -> tuple[Any, str]:
    """The encoder's model and id, as `SentenceEncoder.load` finds them."""
    from compllm.paths import encoder_dir
    from compllm.routing.embed import OpenVINOEncoder, encoder_id, find_ir, sentence_transformer

    path = encoder_dir()
    source = encoder_id(path)
    ir = find_ir(path, source)
    model = OpenVINOEncoder(ir) if ir else sentence_transformer(path)
    model.encode(["warm up"])
    return model, source


@contextlib.contextmanager
def own_server(engine: Path | None) -> Iterator[str]:
    from compllm.server import triton_server

    with triton_server.running(engine, is_shared=False) as info:
        yield info.grpc_url


async def bench(arguments: argparse.Namespace, report: Report) -> None:
    from compllm.config import load_config

    sets = read_sets(arguments, load_config(arguments.config))
    async with opened(arguments) as llms:
        records = [
            record
            for name, graphs in sets.items()
            async for record in replayed(llms, name, graphs, arguments)
        ]
    report.summary["records"] = records
    tabulate(report, records)


async def replayed(
    llms: LLMs, name: str, graphs: Sequence[ReplayGraph], arguments: argparse.Namespace
) -> AsyncIterator[Record]:
    """A record for each graph, part and policy, a block of graphs at a time."""
    from compllm.lab.replay.step_times import mean_profile

    await run_block(llms, graphs[:1], 0, arguments)  # what a first graph pays for counts for none
    before = await measured(llms, graphs)
    for start in range(0, len(graphs), arguments.block):
        block = graphs[start : start + arguments.block]
        ran = await run_block(llms, block, start, arguments)
        behind = await measured(llms, graphs)
        profile = mean_profile(before, behind)
        for part, settings, each in ran:
            yield {"set": name, "part": part, **slim(each, settings, profile)}
        before = behind
        done = min(start + arguments.block, len(graphs))
        print(f"{name}: {done} of {len(graphs)} graphs", file=sys.stderr, flush=True)


async def measured(llms: LLMs, graphs: Sequence[ReplayGraph]) -> EngineProfile:
    from compllm.lab.replay.step_times import measure

    llm = llms["stage"]
    width = max(graph.width for graph in graphs)
    return await measure(llm.forced.inner, llm.catalogue, width + 1)


async def run_block(
    llms: LLMs, graphs: Sequence[ReplayGraph], start: int, arguments: argparse.Namespace
) -> list[tuple[str, ReplaySettings, Any]]:
    from compllm.errors import CompllmError
    from compllm.lab.replay.drive import Ran, ReplaySettings, run_graph
    from compllm.lab.replay.forced import ForcedWork
    from compllm.lab.replay.workload import TokenLengths

    lengths = TokenLengths(arguments.tokens_per_node, arguments.tokens_sigma, arguments.seed)
    found = []
    for index, graph in enumerate(graphs, start=start):
        for part, overhead in PARTS.items():
            for place in range(len(POLICIES)):
                policy = POLICIES[(index + place) % len(POLICIES)]
                settings = ReplaySettings(
                    policy,  # type: ignore[arg-type]
                    lengths,
                    arguments.answer_tokens,
                    overhead,  # type: ignore[arg-type]
                    salt=salt_of(part, policy),
                )
                answer, error = None, None
                work = ForcedWork(graph.plan, {})
                try:
                    work, answer = await run_graph(llms[part], graph, settings, f"q{index}")
                    error = answer.error
                except CompllmError as failure:
                    error = str(failure)
                found.append((part, settings, Ran(index, graph, work, 0.0, 0.0, answer, error)))
    return found


def salt_of(part: str, policy: str) -> str:
    """A token or two, as many for each."""
    number = [*PARTS].index(part) * len(POLICIES) + POLICIES.index(policy)
    return f"{string.ascii_uppercase[number]})"


def slim(ran: Any, settings: ReplaySettings, profile: EngineProfile) -> Record:
    """The replay's own record, with what repeats itself left out."""
    from compllm.lab.engine_profile import GPU_LIKE
    from compllm.lab.replay.ideal import ideal, sequential_ms
    from compllm.lab.replay.records import loads_of, make_record

    record = make_record(ran, settings, profile)
    if "ideal_ms" in record:
        loads = loads_of(ran, profile.tokens_per_block)
        there = ideal(loads, GPU_LIKE)
        alone_ms = sequential_ms(loads.values(), GPU_LIKE)
        record["gpu_like_speedup"] = round(alone_ms / there.total_ms, 4)
        record["gpu_like_ttft_of_total"] = round(there.ttft_of_total, 4)
    nodes = [
        {key: node[key] for key in ("id", "start_ms", "end_ms", "kv_reused_blocks")}
        for node in record.pop("nodes")
    ]
    # What is reached of a sequential time that is an estimate: here that time was measured too, and
    # the tables compare with it.
    for key in ("question", "arrival_ms", "late_ms", "reached_speedup", "reached_of_structural"):
        record.pop(key, None)
    return record | {"nodes": nodes, "step_ms": [list(each) for each in profile.step_ms]}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--smoke", dest="quick", action="store_true", help="the same as --quick")
    parser.add_argument("--graphs", action="append", metavar="NAME=FILE", help="any number of sets")
    parser.add_argument("--limit", type=int, default=30, help="graphs of each set")
    parser.add_argument("--block", type=int, default=5, help="graphs between two measurements")
    parser.add_argument("--tokens-per-node", type=int, default=32)
    parser.add_argument(
        "--tokens-sigma", type=float, default=0.0, help="above 0: lognormal lengths with that mean"
    )
    parser.add_argument("--answer-tokens", type=int, default=64)
    parser.add_argument("--url", default="", help="host:port of gRPC; without: our own server")
    parser.add_argument("--engine", type=Path, help="of our own server; without: the default one")
    parser.add_argument("--config", type=Path, help="settings as TOML")
    arguments = parser.parse_args(argv)
    if arguments.quick:
        arguments.limit, arguments.tokens_per_node, arguments.answer_tokens = 2, 4, 4
    report = Report(
        "bench_replay",
        arguments,
        ("openvino", "nvidia-pytriton", "tritonclient", "grpcio", "numpy"),
        note="One graph at a time; the same tokens of every node and answer under each policy. "
        "Bounds count the engine's own step times, measured in the same run. slower: graphs below "
        f"{NOISE} of sequential.",
    )
    asyncio.run(bench(arguments, report))
    report.finish(plot)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
