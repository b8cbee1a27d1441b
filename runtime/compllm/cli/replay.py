"""`compllm replay`: known query graphs on the real engine, under one policy, beside the bound.

A scenario file in (`lab/replay/scenario.py`); out: a record for each of its graphs, last
{"summary": {...}}. The same seed is the same work under each policy; see `lab/replay/records.py`
for what the numbers mean. The output appears whole, at the end or at Ctrl-C.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compllm.cli.console import STDIN, progress, say, write
from compllm.cli.shared import (
    ConfigOption,
    ExampleOption,
    ScenarioArgument,
    SeedOption,
    UrlOption,
    read_scenario,
    with_server,
)
from compllm.errors import ConfigError
from compllm.gc_freeze import freeze_startup_objects
from compllm.plural import counted

if TYPE_CHECKING:
    from compllm.config import Config
    from compllm.lab.replay.session import ReplaySession
    from compllm.scheduling.admission import PolicyName as AdmissionPolicy


class PolicyChoice(StrEnum):
    sequential = "sequential"
    levels = "levels"
    dataflow = "dataflow"
    polling = "polling"


RecordsOption = Annotated[
    Path,
    typer.Option("--json", metavar="OUT", help="Where the records go; default: standard output."),
]
PolicyOption = Annotated[
    PolicyChoice | None,
    typer.Option(help="When a node starts, in place of the scenario's policy."),
]
SaltOption = Annotated[
    str | None, typer.Option(metavar="TEXT", help="In place of the scenario's salt.")
]


def replay(
    scenario: ScenarioArgument = None,
    json_output: RecordsOption = STDIN,
    policy: PolicyOption = None,
    seed: SeedOption = None,
    salt: SaltOption = None,
    url: UrlOption = None,
    config: ConfigOption = None,
    is_example: ExampleOption = False,
) -> None:
    """Replay known query graphs and report what was reached of the bound.

    Every graph is planned, routed, run and answered on the real engine, with forced token counts.
    The scenario file names the graphs, the policy, the rate or the concurrency, and the tokens of
    nodes and answers.
    """
    from compllm.connect import load_client_config
    from compllm.lab.replay.scenario import ReplayScenario
    from compllm.lab.replay.session import ReplaySession
    from compllm.lab.scenario import example_text

    if is_example:
        write(example_text(ReplayScenario), None)
        return
    overrides = {"policy": policy and policy.value, "seed": seed, "salt": salt}
    load = read_scenario(ReplayScenario, scenario, overrides)
    settings = load.settings
    values = {
        "server.url": url,
        "compose.policy": settings.compose_policy,
        "sharing.is_on": load.is_shared,
    }
    found = load_client_config(config, values)
    graphs = load.read_graphs(found.limits.plan)
    found, metrics_url = with_server(found)
    session = ReplaySession(graphs, settings, load.metrics_url or metrics_url)
    with _staged(json_output) as save:
        try:
            asyncio.run(_run(session, found, load.admission))
        finally:
            if session.ran:
                save(session.lines())
    say(_outcome(session))
    if session.num_failed:
        raise typer.Exit(1)


async def _run(session: ReplaySession, settings: Config, admission: AdmissionPolicy | None) -> None:
    from compllm.lab.replay.runner import ReplayLLM

    async with await ReplayLLM.connect(settings) as llm:
        freeze_startup_objects()
        if admission is not None:
            llm.use_admission(admission)
        with progress(len(session.graphs)) as advance:
            await session.run(llm, lambda _: advance(1))


def _outcome(session: ReplaySession) -> str:
    failed = f", {session.num_failed} of them failed" if session.num_failed else ""
    first = next((f": {ran.graph.id}: {ran.error}" for ran in session.ran if ran.error), "")
    return f"{counted(len(session.ran), 'graph')} replayed{failed}{first}"


@contextmanager
def _staged(out: Path) -> Iterator[Callable[[Iterable[str]], None]]:
    """Yields what writes the output: into a file beside it that takes its place at once. That the
    place can be written is found out before the run."""
    if out == STDIN:
        yield lambda lines: write("".join(lines), None)
        return
    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        partial.touch()
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error

    def save(lines: Iterable[str]) -> None:
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.writelines(lines)
            partial.replace(out)
        except OSError as error:
            raise ConfigError(f"cannot write {out}: {error.strerror}") from error

    try:
        yield save
    finally:
        partial.unlink(missing_ok=True)
