"""`compllm eval accuracy | plans | router`: the evaluation scripts of a source checkout.

The scripts, their options and what they write are described by `compllm eval NAME --help`. They are
no part of the installed package: their results belong into the checkout that was measured.
"""

from __future__ import annotations

import importlib
import sys

import typer

from compllm.errors import ConfigError
from compllm.paths import resource_dir

app = typer.Typer(
    help="Measure answers, plans and routes on the test sets.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
# Everything behind the name is the script's, --help as well.
_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=_PASSED_ON)
def accuracy(context: typer.Context) -> None:
    """How often is the answer right, who loses it where, and what does it cost?"""
    _run("eval_accuracy", context.args)


@app.command(context_settings=_PASSED_ON)
def plans(context: typer.Context) -> None:
    """Are the generator's plans right?"""
    _run("eval_plans", context.args)


@app.command(context_settings=_PASSED_ON)
def router(context: typer.Context) -> None:
    """Are sub-queries routed to the right expert?"""
    _run("eval_router", context.args)


def _run(name: str, arguments: list[str]) -> None:
    try:
        folder = resource_dir("benchmarks")
    except FileNotFoundError as error:
        raise ConfigError(
            "the evaluation belongs to a source checkout, this is an installed package: "
            "run it in a checkout that is installed with 'pip install -e .'"
        ) from error
    if not (folder / f"{name}.py").is_file():
        raise ConfigError(f"no {name}.py in {folder}: the checkout is incomplete")
    # First, since the name is a common one for folders that should not have been installed.
    sys.path.insert(0, str(folder.parent))
    status: int = importlib.import_module(f"benchmarks.{name}").main(arguments)
    if status:
        raise typer.Exit(status)
