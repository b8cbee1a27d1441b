"""`compllm eval --questions FILE`: a set of one's own (eval_set.py). `compllm eval accuracy`,
`plans` and `router`: the evaluation scripts of a source checkout.

The scripts, their options and what they write are described by `compllm eval NAME --help`. They are
no part of the installed package: their results belong into the checkout that was measured.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from compllm.cli.shared import ConfigOption, JsonOption, UrlOption
from compllm.errors import ConfigError
from compllm.paths import resource_dir

_NEEDED = """\
What is missing: the folder benchmarks/ with the script {script}.py, which holds the options.
It is part of a source checkout (the folder of pyproject.toml), not of the installed package.
How to get it: run pip install -e '.[train]' in a source checkout.
Then {prog} runs in any folder, and --help lists its options."""

app = typer.Typer(
    no_args_is_help=True,
    invoke_without_command=True,
    rich_markup_mode=None,
)
# Everything behind the name is the script's, --help as well.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.callback()
def own_set(
    context: typer.Context,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Ask the running server each question of this file: a line each, or JSON lines "
            "or CSV of question and, where known, answer.",
        ),
    ] = None,
    at_once: Annotated[
        int, typer.Option(min=1, metavar="N", help="How many are asked at a time.")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write each question with its answer here, a line each."),
    ] = None,
    url: UrlOption = None,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Measure answers, plans, routes and times, on questions of your own (--questions FILE).

    The commands below measure the project's own test sets. They need a source checkout.
    """
    if context.invoked_subcommand is not None:
        return
    if questions is None:
        raise ConfigError("give --questions FILE, or the name of one of the project's test sets")
    from compllm.cli.eval_set import evaluate

    evaluate(questions, config, url, at_once, out, is_json=is_json)


@app.command(context_settings=_PASSED_ON)
def accuracy(context: typer.Context) -> None:
    """How often is the answer right, who loses it where, and what does it cost?"""
    _run("accuracy", context)


@app.command(context_settings=_PASSED_ON)
def plans(context: typer.Context) -> None:
    """Are the generator's plans right?"""
    _run("plans", context)


@app.command(context_settings=_PASSED_ON)
def router(context: typer.Context) -> None:
    """Are sub-queries routed to the right expert?"""
    _run("router", context)


def _run(name: str, context: typer.Context) -> None:
    prog, script = f"compllm eval {name}", f"eval_{name}"
    room = "routing" if name == "router" else "accuracy"
    needed = _NEEDED.format(prog=prog, script=script)
    try:
        folder = resource_dir("benchmarks")
    except FileNotFoundError as error:
        if {"--help", "-h"} & set(context.args):
            print(f"{prog}: {context.command.help}\n\n{needed}")
            return
        raise ConfigError(needed) from error
    if not (folder / room / f"{script}.py").is_file():
        raise ConfigError(f"no {script}.py in {folder / room}: the checkout is incomplete")
    # First, since the name is a common one for folders that should not have been installed.
    sys.path.insert(0, str(folder.parent))
    try:
        status: int = importlib.import_module(f"benchmarks.{room}.{script}").main(
            context.args, prog
        )
    except SystemExit as end:  # argparse has said why, or printed the help
        status = int(end.code or 0)
    if status:
        raise typer.Exit(status)
