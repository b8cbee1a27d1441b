"""What adding and removing an expert share: project, encoder, and the page about the router."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compllm.cli.console import say
from compllm.errors import ConfigError
from compllm.paths import PROJECT_FILE
from compllm.plural import counted

if TYPE_CHECKING:
    from compllm.build_scripts.own.experts import Change
    from compllm.build_scripts.own.project import Project
    from compllm.build_scripts.own.router import Refit
    from compllm.routing.embed import SentenceEncoder

_SHOWN = 20  # questions that a list names

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The expert's name.")]


def open_project(config: Path | None) -> Project:
    from compllm.build_scripts.own.project import Project

    if config is None:
        raise ConfigError(
            f"no {PROJECT_FILE} in this folder or above: make a project with `compllm init DIR`, "
            "or name one with --config FILE"
        )
    return Project(config)


def load_encoder() -> SentenceEncoder:
    from compllm.build_scripts.fetch_base import ensure_encoder
    from compllm.routing.embed import SentenceEncoder

    return asyncio.run(SentenceEncoder.load(ensure_encoder()))


def show_refit(refit: Refit) -> None:
    """The confusion table, and the questions that moved. On stderr, as progress is."""
    if refit.confusion.size:
        say("routing of all examples, each by a router that was fitted without it:")
        width = max(len(name) for name in (*refit.names, "belongs to"))
        columns = "  ".join(f"{name:>{max(6, len(name))}}" for name in refit.names)
        say(f"  {'belongs to':<{width}}  {columns}")
        for name, counts in zip(refit.names, refit.confusion, strict=True):
            cells = zip(refit.names, counts, strict=True)
            row = "  ".join(f"{count:>{max(6, len(other))}}" for other, count in cells)
            say(f"  {name:<{width}}  {row}")
    if not refit.moved:
        say("no question of the others is routed elsewhere than before")
    for each in refit.moved[:_SHOWN]:
        mark = " (worse)" if each.is_worse else ""
        say(f"moved: {each.question!r} of {each.owner}: {each.before} -> {each.after}{mark}")
    if len(refit.moved) > _SHOWN:
        say(f"and {len(refit.moved) - _SHOWN} more")


def refuse_worse(change: Change, *, is_yes: bool) -> None:
    worse = change.refit.worse
    if worse and not is_yes:
        owners = ", ".join(sorted({each.owner for each in worse}))
        raise ConfigError(
            f"{counted(len(worse), 'question')} of {owners} would be routed worse, and nothing was "
            f"changed: give other examples to {change.name}, or add it all the same with --yes"
        )
