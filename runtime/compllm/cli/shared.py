"""What several commands share: options, choices, questions, plans and scenario files, the settings,
the server that is asked and the path to it.

Apart from `app.py`, which the command modules cannot import.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from compllm.cli.console import STDIN, read_text
from compllm.errors import ConfigError, ServerError
from compllm.gc_freeze import freeze_startup_objects
from compllm.paths import find_project

if TYPE_CHECKING:
    from rich.console import Console

    from compllm.config import Config
    from compllm.lab.scenario import Scenario
    from compllm.pipeline import CompLLM
    from compllm.types import Plan

S = TypeVar("S", bound="Scenario")
T = TypeVar("T")


class Compose(StrEnum):
    always = "always"
    auto = "auto"
    never = "never"


class Gate(StrEnum):
    off = "off"
    on = "on"
    auto = "auto"


def found_config(given: Path | None) -> Path | None:
    """The file of settings that a command takes: the given one, that of $COMPLLM_CONFIG (which
    `load_config` reads for None), else the project's whose folder the command runs in."""
    if given is not None or os.environ.get("COMPLLM_CONFIG"):
        return given
    return find_project(Path.cwd())


QueryArgument = Annotated[
    str | None, typer.Argument(metavar="QUESTION", help="The question; '-' reads standard input.")
]
PlanOption = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="Take this plan and write none: lines of 'id <parents> | text', or JSON; '-' reads "
        "standard input.",
    ),
]
UrlOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="HOST:PORT",
        help="The gRPC address of a Triton server; default: the server of `compllm up`.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        callback=found_config,
        help="A TOML file of settings; default: the compllm.toml of this folder or of one above, "
        "else the settings of the running server.",
    ),
]
DeadlineOption = Annotated[
    float | None,
    typer.Option(
        "--deadline",
        min=0.001,
        metavar="SECONDS",
        help="End within this time, with what is known by then; default: timeouts.query_s (120).",
    ),
]
GateOption = Annotated[
    Gate | None,
    typer.Option(
        "--gate",
        help="Which questions skip the plan and go whole to one expert. off: none; on: those that "
        "probably need no plan; auto: those that surely need none. Default: gate.mode.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
ScenarioArgument = Annotated[
    Path | None,
    typer.Argument(metavar="SCENARIO.toml", help="The scenario; --example prints one with notes."),
]
SeedOption = Annotated[
    int | None,
    typer.Option(min=0, metavar="N", help="In place of the scenario's seed."),
]
ExampleOption = Annotated[
    bool,
    typer.Option("--example", help="Print a scenario file with every key, and end."),
]


def read_scenario(kind: type[S], path: Path | None, overrides: Mapping[str, object]) -> S:
    """The scenario that a command was given, with its options in place of the file's keys; None
    leaves the file's. Raises ConfigError."""
    from compllm.lab import scenario

    if path is None:
        raise ConfigError("name a scenario file; --example prints one")
    return scenario.read_scenario(path, kind, overrides)


def with_server(settings: Config) -> tuple[Config, str | None]:
    """The settings with a server's address, the given one or that of the one running here, and
    where its metrics are if that is known. Raises ServerError where there is none."""
    if settings.server.url:
        return settings, None
    try:
        from compllm.server import triton_server
    except ImportError as error:
        raise ServerError(
            f"no server is named: give --url HOST:PORT (the embedded one is not here: {error})"
        ) from error
    server = triton_server.status(wait_s=triton_server.RESTART_WAIT_S)
    if server is None:
        raise ServerError(
            "no server is running: start one with `compllm up`, or name one with --url HOST:PORT"
        )
    triton_server.use(server)
    found = replace(settings, server=replace(settings.server, url=server.grpc_url))
    return found, server.metrics_url


def read_settings(
    path: Path | None, url: str | None = None, overrides: dict[str, object] | None = None
) -> Config:
    from compllm.connect import load_client_config

    return load_client_config(path, {"server.url": url, **(overrides or {})})


def read_query(argument: str | None, plan: Path | None = None) -> str:
    """The question: an argument, or standard input for '-'."""
    if argument is None:
        raise ConfigError("no question: give one, or '-' to read it from standard input")
    if argument == "-":
        if plan == STDIN:
            raise ConfigError("the question and the plan cannot both be standard input")
        argument = read_text(STDIN)
    if not argument.strip():
        raise ConfigError("the question is empty")
    return argument.strip()


def read_plan(path: Path, settings: Config) -> Plan:
    from compllm.plan import parse_plan

    return parse_plan(read_text(path), settings.limits.plan)


def run_work(work: Coroutine[Any, Any, T]) -> T:
    """Run it; Ctrl-C cancels it, and with it its requests at the engine, and ends the command."""
    return asyncio.run(work)


async def connected(settings: Config, console: Console) -> CompLLM:
    """Loading the encoder takes a second or more: a terminal shows it."""
    with console.status("loading the encoder"):
        from compllm.pipeline import CompLLM

        llm = await CompLLM.connect(settings)
        freeze_startup_objects()
        return llm
