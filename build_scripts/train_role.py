"""`compllm train generator` and `compllm train aggregator`: those of a project, for its base.

    compllm train generator [--plans FILE] [--max-minutes N]

Until then the base writes plans and answers, shown examples. The project is the compllm.toml of the
folder or of one above it, or that of --config. own/roles.py does the work.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from compllm.build_scripts.own.roles import MIN_PLANS, ROLES, train_role
from compllm.build_scripts.staging import run_script
from compllm.errors import ConfigError
from compllm.paths import PROJECT_FILE, find_project


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command; `prog` is its name in the help."""
    parser = argparse.ArgumentParser(
        prog,
        description="Train the generator or the aggregator of a project for its base, and let the "
        "project use it. A run that is stopped goes on when the same command is given again.",
    )
    add = parser.add_argument
    add("role", choices=ROLES, help="which of the two")
    add(
        "--plans",
        type=Path,
        metavar="FILE",
        help="decompositions to train the generator on: JSON lines of question and plan, or of "
        f"question, steps and parents; at least {MIN_PLANS}. Default: the sets of "
        "make_datasets.py, which need the extra [datasets]",
    )
    add("--epochs", type=float, metavar="X", help="passes over the examples; default: 2")
    add(
        "--max-minutes",
        type=float,
        default=60.0,
        metavar="N",
        help="minutes at most, 0 is no limit; default: 60",
    )
    add("--yes", action="store_true", help="replace a trained adapter by a much worse one, too")
    add("--config", type=Path, metavar="FILE", help="the project's file; default: see above")
    return parser


def run(options: argparse.Namespace) -> None:
    from compllm.build_scripts.own.project import Project

    path = options.config or find_project(Path.cwd())
    if path is None:
        raise ConfigError(
            f"no {PROJECT_FILE} in this folder or above: make a project with `compllm init DIR`, "
            "or name one with --config FILE"
        )
    if options.plans is not None and options.role != "generator":
        raise ConfigError("--plans belongs to the generator: an aggregator writes no plans")
    if (options.epochs is not None and not options.epochs > 0) or options.max_minutes < 0:
        raise ConfigError("--epochs must be above 0, and --max-minutes 0 or more")
    outcome = train_role(
        Project(path),
        options.role,
        options.plans,
        epochs=options.epochs,
        max_minutes=options.max_minutes,
        is_yes=options.yes,
    )
    print(f"the project has its own {options.role}: {outcome}")


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    options = make_parser(prog).parse_args(arguments)
    return run_script(lambda: run(options))
