"""`compllm simulate`: what a load of queries would see on engines of a profile, without any engine.

A scenario file in (`lab/simulate/scenario.py`); out: a table for people on stdout, one JSON object
with --json. With --fit it makes the profile out of the result files of our benchmarks and ends.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compllm.cli.console import STDIN, as_json, print_table, say, write
from compllm.cli.shared import ExampleOption, ScenarioArgument, SeedOption, read_scenario

if TYPE_CHECKING:
    from compllm.lab.simulate.load import Outcome, Service
    from compllm.lab.simulate.scenario import SimulateScenario
    from compllm.lab.simulate.workload import Load, Workload

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
# What a report holds of all policies together, after the table.
_MORE = (
    "capacity_qps",
    "load",
    "times_shorter_than_fifo",
    "is_hypothetical",
    "engines_needed",
    "timing",
)


def simulate(
    scenario: ScenarioArgument = None,
    json_output: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="OUT",
            help="Where all figures go as JSON; '-': standard output, without the table.",
        ),
    ] = None,
    seed: SeedOption = None,
    is_timed: Annotated[
        bool, typer.Option("--timed", help="Also report how long each policy's simulation took.")
    ] = False,
    fit: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Make an engine profile out of bench_engine.json, and of bench_decode.json and "
            "bench_scheduler_engine.json where they are given.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="With --fit: where the profile goes; default: standard output."
        ),
    ] = None,
    is_example: ExampleOption = False,
) -> None:
    """Predict what a load of queries would see: latency, waits, utilisation, engines needed.

    The scenario file names the graphs, the rate, the engine profile, the policies to compare, and
    the tokens of nodes and answers.
    """
    from compllm.lab.scenario import example_text
    from compllm.lab.simulate.scenario import SimulateScenario

    if is_example:
        write(example_text(SimulateScenario), None)
    elif fit:
        _fit(fit, out)
    else:
        load = read_scenario(SimulateScenario, scenario, {"seed": seed})
        report, outcomes = _report(load, is_timed=is_timed)
        if json_output != STDIN:
            _print_outcomes(report, outcomes)
        if json_output is not None:
            write(as_json(report), None if json_output == STDIN else json_output)


def _report(
    scenario: SimulateScenario, *, is_timed: bool
) -> tuple[dict[str, object], list[Outcome]]:
    """All figures of a scenario, and those of each policy as they were found."""
    from compllm.config import Config
    from compllm.lab.engine_profile import load_profile
    from compllm.lab.simulate.load import Service
    from compllm.lab.simulate.workload import base_encode, make_workload

    profile = load_profile(scenario.profile_name)
    encode, counted_by = base_encode()
    workload = make_workload(
        scenario.read_graphs(Config().limits.plan),
        scenario.lengths,
        scenario.shape,
        encode,
        tokens_per_block=profile.tokens_per_block,
    )
    in_flight = scenario.max_in_flight or profile.max_batch_size
    service = Service(profile, max_in_flight=in_flight, num_engines=scenario.num_engines)
    outcomes, more, timing = _predict(workload, service, scenario)
    if is_timed:
        more["timing"] = timing
    report = {
        "graphs": len(workload.specs),
        "rate_qps": scenario.rate_qps,
        "num_queries": outcomes[0].num_queries,
        "shape": asdict(scenario.shape),
        "lengths": asdict(scenario.lengths),
        "tokens_counted_by": counted_by,
        "num_engines": scenario.num_engines,
        "max_in_flight": in_flight,
        "profile": asdict(profile),
        **more,
        "policies": [asdict(outcome) for outcome in outcomes],
    }
    return report, outcomes


def _print_outcomes(report: Mapping[str, object], outcomes: Sequence[Outcome]) -> None:
    """The table of the policies on stdout, what holds for all of them on stderr."""
    print_table(("policy", *_COLUMNS), [_row(outcome) for outcome in outcomes])
    for name in _MORE:
        if name in report:
            say(f"{name}: {report[name]}")


def _fit(paths: Sequence[Path], out: Path | None) -> None:
    from compllm.lab.simulate.fit import fit_profile

    write(fit_profile(paths).to_json(), out)


def _predict(
    workload: Workload, service: Service, scenario: SimulateScenario
) -> tuple[list[Outcome], dict[str, object], dict[str, object]]:
    """Every policy on the same queries, what holds for all of them, and the seconds it took to draw
    the queries and to simulate them."""
    from compllm.lab.simulate.load import capacity_qps, gains, run

    policies = tuple(dict.fromkeys(scenario.policies))
    start_s = time.perf_counter()
    load = workload.load(scenario.rate_qps, scenario.num_queries or len(workload.specs))
    timing: dict[str, object] = {
        "num_queries": load.num_queries,
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
        "load": scenario.rate_qps / capacity,
        "times_shorter_than_fifo": gains(outcomes),
        "is_hypothetical": service.profile.is_hypothetical,
    }
    if scenario.p95_ms is not None:
        more["engines_needed"] = {
            policy: _engines_needed(
                workload, load, replace(service, policy=policy), scenario.p95_ms
            )
            for policy in policies
        }
    return outcomes, more, timing


def _engines_needed(workload: Workload, load: Load, service: Service, p95_ms: float) -> int | None:
    from compllm.lab.simulate.load import engines_needed, run

    def fits(count: int) -> bool:
        outcome = run(workload, load, replace(service, num_engines=count))
        return outcome.latency_ms.p95 <= p95_ms

    return engines_needed(fits)


def _row(outcome: Outcome) -> tuple[str, ...]:
    latency = outcome.latency_ms
    numbers = (latency.mean, latency.p50, latency.p95, latency.p99, outcome.ttft_ms.p50)
    return (
        outcome.policy,
        *(f"{ms:,.0f}" for ms in (*numbers, outcome.wait_ms.max)),
        f"{outcome.utilisation:.1%}",
        f"{outcome.mean_batch:.2f}",
    )
