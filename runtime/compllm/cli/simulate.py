"""`compllm simulate`: what a load of queries would see on engines of a profile, without any engine.

A table for people on stdout and one JSON object with --json; with --fit it makes the profile out of
the result files of our benchmarks and ends.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compllm.cli.console import STDIN, as_json, print_table, say, write
from compllm.cli.shared import AdmissionOrder, Compose, Overhead
from compllm.errors import ConfigError

if TYPE_CHECKING:
    from compllm.lab.simulate.load import Outcome, Service
    from compllm.lab.simulate.workload import Workload
    from compllm.scheduling.admission import PolicyName

_NODE_TOKENS = 32
_COLUMNS = (
    "mean ms",
    "p50 ms",
    "p95 ms",
    "p99 ms",
    "first token p50 ms",
    "worst wait ms",
    "busy",
    "batch",
)


class ScheduleOption(StrEnum):
    dataflow = "dataflow"
    levels = "levels"
    sequential = "sequential"


def simulate(
    graphs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines of {'question', 'steps', 'parents'}."),
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(metavar="QPS", help="Queries arrive at random, this many a second."),
    ] = None,
    engine_profile: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="The engine's speed, as --fit wrote it; 'gpu-like' is a hypothetical one.",
        ),
    ] = None,
    policy: Annotated[
        list[AdmissionOrder] | None,
        typer.Option(help="Order of waiting requests; several are compared."),
    ] = None,
    schedule: Annotated[
        ScheduleOption, typer.Option(help="Which sub-queries may run together.")
    ] = ScheduleOption.dataflow,
    num_engines: Annotated[int, typer.Option(min=1, metavar="N", help="Engines side by side.")] = 1,
    max_in_flight: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Requests at an engine at a time; default: as many as it batches.",
        ),
    ] = None,
    queries: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="How many queries arrive; default: each graph once."),
    ] = None,
    tokens_per_node: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Tokens of every node's response; default: 32."),
    ] = None,
    token_lengths: Annotated[
        str | None,
        typer.Option(
            metavar="lognormal:MEAN,SIGMA",
            help="Tokens drawn for each node instead: mean, and deviation of the logarithm.",
        ),
    ] = None,
    overhead: Annotated[
        Overhead, typer.Option(help="Whether plan and answer are written too.")
    ] = Overhead.plan_compose,
    compose: Annotated[
        Compose,
        typer.Option(help="Which answers a model writes; auto: those of several sub-queries."),
    ] = Compose.always,
    answer_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tokens of a composed answer.")
    ] = 64,
    p95_ms: Annotated[
        float | None,
        typer.Option(
            metavar="MS",
            help="Also find how many engines keep the 95th percentile of latency within this.",
        ),
    ] = None,
    is_timed: Annotated[
        bool, typer.Option("--timed", help="Also report how long each policy's simulation took.")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of the arrivals and of what is drawn.")
    ] = 0,
    fit: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Make a profile for --engine-profile out of bench_engine.json, and of "
            "bench_decode.json and bench_scheduler_engine.json where they are given.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --fit: where the profile goes; default: standard output."
        ),
    ] = None,
    json_output: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="OUT",
            help="Where all figures go as JSON; '-': standard output, without the table.",
        ),
    ] = None,
) -> None:
    """Predict what a load of queries would see: latency, waits, utilisation, engines needed."""
    if fit:
        _fit(fit, out)
        return
    if graphs is None or rate is None or engine_profile is None:
        raise ConfigError("give --graphs, --rate and --engine-profile, or --fit")
    if not 0 < rate < float("inf"):
        raise ConfigError(f"--rate is {rate}: it must be more than 0")
    if tokens_per_node is not None and token_lengths is not None:
        raise ConfigError("--tokens-per-node and --token-lengths exclude each other")
    from compllm.config import Config
    from compllm.lab.engine_profile import load_profile
    from compllm.lab.replay.graphs import read_graphs
    from compllm.lab.replay.workload import TokenLengths
    from compllm.lab.simulate.load import Service
    from compllm.lab.simulate.workload import Shape, base_encode, make_workload

    profile = load_profile(engine_profile)
    if token_lengths is None:
        lengths = TokenLengths(tokens_per_node or _NODE_TOKENS, seed=seed)
    else:
        lengths = TokenLengths.parse(token_lengths, seed)
    shape = Shape(overhead.value, schedule.value, compose.value, answer_tokens)
    encode, counted_by = base_encode()
    workload = make_workload(
        read_graphs(graphs, Config().limits.plan),
        lengths,
        shape,
        encode,
        tokens_per_block=profile.tokens_per_block,
    )
    in_flight = max_in_flight or profile.max_batch_size
    service = Service(profile, max_in_flight=in_flight, num_engines=num_engines)
    num_queries = queries or len(workload.specs)
    policies: tuple[PolicyName, ...] = tuple(each.value for each in policy or AdmissionOrder)
    policies = tuple(dict.fromkeys(policies))
    outcomes, more, timing = _predict(workload, service, policies, rate, num_queries, p95_ms)
    if is_timed:
        more["timing"] = timing
    if json_output != STDIN:
        print_table(("policy", *_COLUMNS), [_row(outcome) for outcome in outcomes])
        for name, value in more.items():
            say(f"{name}: {value}")
    if json_output is not None:
        report = {
            "graphs": len(workload.specs),
            "rate_qps": rate,
            "num_queries": num_queries,
            "shape": asdict(shape),
            "lengths": asdict(lengths),
            "tokens_counted_by": counted_by,
            "num_engines": num_engines,
            "max_in_flight": in_flight,
            "profile": asdict(profile),
            **more,
            "policies": [asdict(outcome) for outcome in outcomes],
        }
        write(as_json(report), None if json_output == STDIN else json_output)


def _fit(paths: Sequence[Path], out: Path | None) -> None:
    from compllm.lab.simulate.fit import fit_profile

    write(fit_profile(paths).to_json(), out)


def _predict(
    workload: Workload,
    service: Service,
    policies: Sequence[PolicyName],
    rate: float,
    num_queries: int,
    p95_ms: float | None,
) -> tuple[list[Outcome], dict[str, object], dict[str, object]]:
    """Every policy on the same queries, what is said of all of them, and the seconds it took to
    draw the queries and to simulate them."""
    from compllm.lab.simulate.load import capacity_qps, engines_needed, gains, run

    start_s = time.perf_counter()
    load = workload.load(rate, num_queries)
    timing: dict[str, object] = {
        "num_queries": num_queries,
        "draw_s": round(time.perf_counter() - start_s, 3),
    }
    outcomes = []
    for policy in policies:
        start_s = time.perf_counter()
        outcomes.append(run(workload, load, replace(service, policy=policy)))
        timing[f"{policy}_s"] = round(time.perf_counter() - start_s, 3)
    capacity = capacity_qps(workload, replace(service, policy=policies[0]))
    more: dict[str, object] = {
        "capacity_qps": capacity,
        "load": rate / capacity,
        "times_shorter_than_fifo": gains(outcomes),
        "is_hypothetical": service.profile.is_hypothetical,
    }
    if p95_ms is not None:
        more["engines_needed"] = {
            policy: engines_needed(
                lambda count, policy=policy: (
                    run(  # type: ignore[misc]
                        workload, load, replace(service, policy=policy, num_engines=count)
                    ).latency_ms.p95
                    <= p95_ms
                )
            )
            for policy in policies
        }
    return outcomes, more, timing


def _row(outcome: Outcome) -> tuple[str, ...]:
    latency = outcome.latency_ms
    numbers = (latency.mean, latency.p50, latency.p95, latency.p99, outcome.ttft_ms.p50)
    return (
        outcome.policy,
        *(f"{ms:,.0f}" for ms in (*numbers, outcome.wait_ms.max)),
        f"{outcome.utilisation:.1%}",
        f"{outcome.mean_batch:.2f}",
    )
