"""`compllm replay`: known query graphs on the real engine, under one policy, beside the bound.

JSON lines in, {"id", "question", "steps": [...], "parents": [[...]]}; a record for each out, last
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

from compllm.cli.console import STDIN, say, write
from compllm.cli.shared import AdmissionOrder, Overhead, with_server
from compllm.errors import ConfigError
from compllm.gc_freeze import freeze_startup_objects
from compllm.plural import counted

if TYPE_CHECKING:
    from compllm.config import Config
    from compllm.lab.replay.session import ReplaySession


class PolicyChoice(StrEnum):
    sequential = "sequential"
    levels = "levels"
    dataflow = "dataflow"
    polling = "polling"


def replay(
    graphs: Annotated[
        Path,
        typer.Option(
            "--graphs",
            metavar="FILE",
            help="JSON lines of {'id', 'question', 'steps', 'parents'}.",
        ),
    ],
    json_output: Annotated[
        Path, typer.Option("--json", metavar="OUT", help="Where the records go; '-': stdout.")
    ],
    policy: Annotated[
        PolicyChoice, typer.Option(help="When a node starts; dataflow is the runtime's way.")
    ] = PolicyChoice.dataflow,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.0001, metavar="QPS", help="Queries arrive at random, this many a second."
        ),
    ] = None,
    concurrency: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Queries in flight at a time; default: 1."),
    ] = None,
    tokens_per_node: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, metavar="N", help="Tokens of every node's response; default: 32."
        ),
    ] = None,
    token_lengths: Annotated[
        str | None,
        typer.Option(
            metavar="lognormal:MEAN,SIGMA",
            help="Tokens drawn for each node instead: mean, and deviation of the logarithm.",
        ),
    ] = None,
    answer_tokens: Annotated[
        int, typer.Option(min=1, max=1024, metavar="N", help="Tokens of the composed answer.")
    ] = 64,
    overhead: Annotated[
        Overhead, typer.Option(help="Whether plan and answer are written too.")
    ] = Overhead.plan_compose,
    seed: Annotated[
        int, typer.Option(min=0, metavar="N", help="Of the arrivals and of what is drawn.")
    ] = 0,
    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Replay the first N graphs alone; default: all."),
    ] = None,
    admission: Annotated[
        AdmissionOrder | None, typer.Option(help="Order of waiting requests; default: oldest.")
    ] = None,
    is_shared: Annotated[
        bool,
        typer.Option(
            "--sharing/--no-sharing",
            help="One request for identical sub-queries of live queries: less work for some.",
        ),
    ] = False,
    salt: Annotated[
        str,
        typer.Option(help="Before every question, so that no earlier run's prefix is reused."),
    ] = "",
    url: Annotated[
        str | None,
        typer.Option(
            metavar="HOST:PORT",
            help="The gRPC address of a Triton server; default: the server of `compllm up`.",
        ),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Of that server's metrics; default: those of `compllm up`."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            help="A TOML file of settings; default: the settings of the running server.",
        ),
    ] = None,
) -> None:
    """Replay known query graphs and report what was reached of the bound.

    Every graph is planned, routed, run and answered on the real engine, with a fixed number of
    tokens for each node.
    """
    from compllm.connect import load_client_config
    from compllm.lab.replay.drive import ReplaySettings
    from compllm.lab.replay.graphs import read_graphs
    from compllm.lab.replay.session import ReplaySession
    from compllm.lab.replay.workload import TokenLengths

    if rate is not None and concurrency is not None:
        raise ConfigError("give --rate or --concurrency, not both")
    if tokens_per_node is not None and token_lengths is not None:
        raise ConfigError("give --tokens-per-node or --token-lengths, not both")
    lengths = (
        TokenLengths.parse(token_lengths, seed)
        if token_lengths is not None
        else TokenLengths(tokens_per_node or 32, seed=seed)
    )
    settings = ReplaySettings(
        policy.value,
        lengths,
        answer_tokens,
        overhead.value,
        concurrency or 1,
        rate,
        seed,
        salt,
    )
    values = {
        "server.url": url,
        "compose.policy": settings.compose_policy,
        "sharing.is_on": is_shared,
    }
    found = load_client_config(config, values)
    read = read_graphs(graphs, found.limits.plan, limit)
    found, metrics_url = with_server(found)
    session = ReplaySession(read, settings, metrics or metrics_url)
    with _staged(json_output) as save:
        try:
            asyncio.run(_run(session, found, admission and admission.value))
        finally:
            if session.ran:
                save(session.lines())
    say(_told(session))
    if session.num_failed:
        raise typer.Exit(1)


async def _run(session: ReplaySession, settings: Config, admission: str | None) -> None:
    from compllm.lab.replay.runner import ReplayLLM

    async with await ReplayLLM.connect(settings) as llm:
        freeze_startup_objects()
        if admission is not None:
            llm.use_admission(admission)  # type: ignore[arg-type]
        with _progress(len(session.graphs)) as advance:
            await session.run(llm, lambda _: advance(1))


def _told(session: ReplaySession) -> str:
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


@contextmanager
def _progress(total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)
