"""Queries that arrive at random, under each admission policy, and what the simulator says of them.

    python -m benchmarks.load.bench_load [--graphs FILE] [--part simulated|real]... [--smoke]
    python -m benchmarks.load.bench_load --part real --load 0.9 --rounds 4 --policy fifo ...

simulated: every policy, in-flight limit and load on profiles of engines; no engine is part of it.
real: the real path through Triton, on a server of its own: a closed loop finds the capacity, then
Poisson arrivals at shares of it, the policies one after another at each share, in rounds of other
arrivals and turned orders (the machine drifts), and beside each run what the simulator makes of it:
`fitted`, what `compllm simulate` says with a profile file, knowing the graphs, the rate and the
seed alone; then, of the very requests that ran, `simulated`, on the step times measured around the
run, when the engine had nothing else to do, `replayed`, on those that the engine counted in the
run, and `paced`, on those and the pace that they had at each time of it. The first two are
forecasts, and near the capacity a few percent of step time are a queue; the third knows the
engine's mean but not the machine's moods; the fourth shows what the model of the engine, the queue
and the path itself is worth. Nodes and answers have as many tokens in both parts.
Results: load_simulated.json, bench_load.json and bench_load.png.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.load.load_predicted import predicted, profile_of, spread
from benchmarks.load.load_simulated import LOADS, POLICIES, Grid, read, simulated, summarise
from benchmarks.path.bench_replay import shapes
from benchmarks.report import RESULTS, Report, Row, add_arguments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from compllm.lab.engine_profile import EngineProfile
    from compllm.lab.replay.drive import ReplaySettings
    from compllm.lab.replay.graphs import ReplayGraph
    from compllm.lab.replay.session import ReplaySession
    from compllm.scheduling.admission import PolicyName

TABLE = "load"
POOLED = "all rounds"
PROFILE = RESULTS / "engine_profile.json"  # `compllm simulate --fit` made it


@dataclass(frozen=True, slots=True)
class Bench:
    """What is the same for every run."""

    graphs: Sequence[ReplayGraph]
    settings: ReplaySettings
    config: Path | None
    overrides: Mapping[str, object]  # of the configuration
    max_in_flight: int
    report: Report
    fitted: EngineProfile  # of a file, before anything ran
    metrics_url: str | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """One run: what the queries saw."""

    latencies_ms: Sequence[float]
    worst_wait_ms: float
    throughput_qps: float
    session: ReplaySession


def repeated(graphs: Sequence[ReplayGraph], count: int) -> list[ReplayGraph]:
    """`count` graphs: where they are fewer, again with other words before, that no cache knows."""
    from compllm.types import Plan

    def again(graph: ReplayGraph, turn: int) -> ReplayGraph:
        steps = graph.plan.sub_queries
        plan = Plan(tuple(replace(each, text=f"Of {turn}: {each.text}") for each in steps))
        return replace(
            graph, id=f"{graph.id} {turn}", question=f"Of {turn}: {graph.question}", plan=plan
        )

    turns = [divmod(number, len(graphs)) for number in range(count)]
    return [again(graphs[index], turn) if turn else graphs[index] for turn, index in turns]


async def replayed(bench: Bench, settings: ReplaySettings, policy: PolicyName) -> Seen:
    """A runtime of its own: its counters are this run's."""
    from compllm.config import load_config
    from compllm.gc_freeze import freeze_startup_objects
    from compllm.lab.replay.runner import ReplayLLM
    from compllm.lab.replay.session import ReplaySession

    session = ReplaySession(bench.graphs, settings, bench.metrics_url)
    async with await ReplayLLM.connect(load_config(bench.config, bench.overrides)) as llm:
        llm.use_admission(policy)
        freeze_startup_objects()
        await session.run(llm)
        waits_ms = [1e3 * engine.max_wait_s for engine in llm.stats().engines.values()]
    well = [ran for ran in session.ran if ran.error is None and ran.answer is not None]
    if not well:
        raise SystemExit(f"no query went well, the first: {session.ran[0].error}")
    # From when a query was due: a client that falls behind hides nothing.
    latencies_ms = [1e3 * (ran.late_s + ran.answer.timings.total_s) for ran in well if ran.answer]
    ends_s = [ran.start_s + ran.answer.timings.total_s for ran in well if ran.answer]
    return Seen(latencies_ms, max(waits_ms), len(well) / max(ends_s), session)


async def real(
    bench: Bench, loads: Sequence[float], policies: Sequence[PolicyName], num_rounds: int
) -> None:
    closed = replace(bench.settings, concurrency=2 * bench.max_in_flight, salt="A B A")
    full = await replayed(bench, closed, "fifo")
    capacity = full.throughput_qps
    bench.report.summary["capacity_qps"] = capacity
    bench.report.add("closed loop", queries_at_a_time=2 * bench.max_in_flight, qps=capacity)
    for load in loads:
        found: dict[PolicyName, list[Seen]] = {policy: [] for policy in policies}
        for number in range(num_rounds):
            of_round = round_of(bench, number)
            for policy in policies if number % 2 == 0 else reversed(policies):
                # Salts of one length: no prompt was seen before, all are as long.
                places = (65 + loads.index(load), 75 + policies.index(policy), 65 + number)
                salt = " ".join(map(chr, places))
                rate_qps = load * capacity
                settings = replace(of_round.settings, rate_qps=rate_qps, salt=salt)
                seen = await replayed(of_round, settings, policy)
                found[policy].append(seen)
                bench.report.add(
                    TABLE,
                    load=load,
                    round=number + 1,
                    rate_qps=round(rate_qps, 4),
                    policy=policy,
                    queries=len(seen.session.ran),
                    failed=seen.session.num_failed,
                    **spread_cells(seen.latencies_ms),
                    worst_wait_ms=round(seen.worst_wait_ms, 1),
                    **predicted(of_round, seen, rate_qps, policy, profile_of(seen, bench.fitted)),
                )
                print(f"{policy} at {load:.0%} done", file=sys.stderr, flush=True)
        for policy, rounds in found.items():
            bench.report.add(
                POOLED,
                load=load,
                policy=policy,
                queries=sum(len(seen.latencies_ms) for seen in rounds),
                **spread_cells([ms for seen in rounds for ms in seen.latencies_ms]),
                worst_wait_ms=round(max(seen.worst_wait_ms for seen in rounds), 1),
            )
        add_gains(bench.report, load)


def round_of(bench: Bench, number: int) -> Bench:
    """The same queries at other times."""
    seed = bench.settings.seed + number
    lengths = replace(bench.settings.lengths, seed=seed)
    return replace(bench, settings=replace(bench.settings, seed=seed, lengths=lengths))


def spread_cells(latencies_ms: Sequence[float]) -> dict[str, float]:
    return {f"{key}_ms": round(ms, 1) for key, ms in asdict(spread(latencies_ms)).items()}


def add_gains(report: Report, load: float) -> None:
    """FIFO's latency over the policy's: of all rounds' queries together, and round by round."""
    pooled = {row["policy"]: row for row in report.tables[POOLED] if row["load"] == load}
    if "fifo" not in pooled:
        return
    rounds: dict[object, dict[object, Row]] = {}
    for row in report.tables[TABLE]:
        if row["load"] == load:
            rounds.setdefault(row["round"], {})[row["policy"]] = row
    for policy in pooled:
        for key in ("p95_ms", "p99_ms"):
            report.summary[f"{key[:3]}_gain of {policy} at {load:.0%}"] = {
                "real": round(_over(pooled, policy, key), 3),
                "rounds": [round(_over(each, policy, key), 3) for each in rounds.values()],
                "simulated": round(
                    median(_over(each, policy, f"simulated_{key}") for each in rounds.values()), 3
                ),
            }


def _over(rows: Mapping[object, Row], policy: object, key: str) -> float:
    return float(rows["fifo"][key] or 0) / float(rows[policy][key] or 1)


def plot(axes: Axes, tables: Mapping[str, list[Row]]) -> None:
    rows = tables[TABLE]
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        loads = list(dict.fromkeys(row["load"] for row in own))
        x = [100 * float(load or 0) for load in loads]

        def medians(
            key: str, own: Sequence[Row] = own, loads: Sequence[object] = loads
        ) -> list[float]:
            return [
                median(float(row[key] or 0) for row in own if row["load"] == load) for load in loads
            ]

        (line,) = axes.plot(x, medians("p95_ms"), "o-", label=f"{policy}")
        axes.plot(
            x, medians("simulated_p95_ms"), "x--", color=line.get_color(), label="  simulated"
        )
    axes.set(xlabel="load, % of capacity", ylabel="p95 of queries, ms, median", yscale="log")
    axes.legend(fontsize="small")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add_arguments(parser)
    parser.add_argument("--smoke", dest="quick", action="store_true", help="as --quick")
    parser.add_argument("--graphs", type=Path, metavar="FILE", help="default: a few shapes")
    parser.add_argument("--part", action="append", choices=("simulated", "real"))
    parser.add_argument("--queries", type=int, default=None, help="of a run; default: 100, 20000")
    parser.add_argument("--max-in-flight", type=int, default=8, help="of part real")
    parser.add_argument("--tokens-per-node", type=int, default=32, help="of both parts")
    parser.add_argument("--answer-tokens", type=int, default=32, help="of both parts")
    parser.add_argument("--rounds", type=int, default=1, help="of part real, a run a policy each")
    parser.add_argument("--load", type=float, action="append", help="share of capacity, part real")
    parser.add_argument("--policy", action="append", choices=POLICIES, help="of part real")
    parser.add_argument("--url", default="", metavar="HOST:PORT", help="without: our own server")
    parser.add_argument("--engine", type=Path, help="of our own server; without: the default one")
    parser.add_argument("--config", type=Path, help="settings as TOML, of part real")
    parser.add_argument(
        "--profile",
        action="append",
        metavar="FILE",
        help="of part simulated; the first one's forecast is shown with part real",
    )
    arguments = parser.parse_args(argv)
    graphs = read(arguments.graphs) if arguments.graphs else shapes()
    parts = arguments.part or ["simulated", "real"]
    profiles = arguments.profile or [str(PROFILE), "gpu-like"]
    if "simulated" in parts:
        name, note = "load_simulated", "simulated: no engine ran; load: of the limit's own capacity"
        report = Report(name, arguments, ("numpy",), note)
        num_queries = 500 if arguments.quick else arguments.queries or 20_000
        loads = (0.5,) if arguments.quick else LOADS
        tokens = arguments.tokens_per_node, arguments.answer_tokens
        simulated(report, graphs, profiles, Grid(loads, num_queries, arguments.seed, *tokens))
        summarise(report)
        report.finish()
    if "real" in parts:
        run_real(graphs, profiles[0], arguments)
    return 0


def run_real(graphs: Sequence[ReplayGraph], profile: str, arguments: argparse.Namespace) -> None:
    from compllm.lab.engine_profile import load_profile
    from compllm.lab.replay.drive import ReplaySettings
    from compllm.lab.replay.workload import TokenLengths

    fitted = load_profile(profile)  # a missing one is reported before the run
    if arguments.quick:
        arguments.tokens_per_node = arguments.answer_tokens = 4

    report = Report(
        "bench_load",
        arguments,
        ("openvino", "nvidia-pytriton"),
        "simulated, replayed: the simulator had the requests and arrivals that ran, not their "
        "times; fitted: the graphs and the rate alone",
    )
    report.summary["fitted"] = {"name": fitted.name, "note": fitted.note}
    count = 3 if arguments.quick else arguments.queries or 100
    loads = arguments.load or ((0.5,) if arguments.quick else LOADS)
    policies = arguments.policy or (POLICIES[:2] if arguments.quick else POLICIES)
    with contextlib.ExitStack() as stack:
        url, metrics_url = arguments.url, None
        if not url:
            from compllm.server import triton_server

            info = stack.enter_context(triton_server.running(arguments.engine, is_shared=False))
            url, metrics_url = info.grpc_url, info.metrics_url
        bench = Bench(
            repeated(graphs, count),
            ReplaySettings(
                lengths=TokenLengths(arguments.tokens_per_node, seed=arguments.seed),
                answer_tokens=arguments.answer_tokens,
                seed=arguments.seed,
            ),
            arguments.config,
            {
                "server.url": url,
                "compose.policy": "always",
                "limits.max_in_flight": arguments.max_in_flight,
                # What shares or shifts work is measured elsewhere.
                "sharing.is_on": False,
            },
            arguments.max_in_flight,
            report,
            fitted,
            metrics_url,
        )
        asyncio.run(real(bench, loads, policies, arguments.rounds))
    report.finish(plot)


if __name__ == "__main__":
    raise SystemExit(main())
