"""What several commands take and find: choices that mean the same everywhere, scenario files,
and the server asked.

Apart from `app.py`, which the command modules cannot import.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from compllm.errors import ConfigError, ServerError

if TYPE_CHECKING:
    from compllm.config import Config
    from compllm.lab.scenario import Scenario

S = TypeVar("S", bound="Scenario")


class Compose(StrEnum):
    always = "always"
    auto = "auto"
    never = "never"


class Gate(StrEnum):
    off = "off"
    on = "on"
    auto = "auto"


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
    server = triton_server.status()
    if server is None:
        raise ServerError(
            "no server is running: start one with `compllm up`, or name one with --url HOST:PORT"
        )
    found = replace(settings, server=replace(settings.server, url=server.grpc_url))
    return found, server.metrics_url
