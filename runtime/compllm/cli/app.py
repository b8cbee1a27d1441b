"""The `compllm` command: its options, its commands in their order, warnings and exit status.

stdout carries results alone (the answer, or one JSON object), stderr the picture and the errors. An
error is one line and exit status 2 (bad input or configuration) or 1 (a failure at run time); with
COMPLLM_DEBUG=1 it is a traceback. Heavy modules are imported inside the commands, so that `--help`
answers at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import warnings
from pathlib import Path
from types import FrameType
from typing import Annotated, TextIO

import typer

from compllm import __version__
from compllm.cli import ask as ask_cli
from compllm.cli import base as base_cli
from compllm.cli import eval as eval_cli
from compllm.cli import expert as expert_cli
from compllm.cli import explain as explain_cli
from compllm.cli import init as init_cli
from compllm.cli import plan as plan_cli
from compllm.cli import replay as replay_cli
from compllm.cli import route as route_cli
from compllm.cli import server as server_cli
from compllm.cli import simulate as simulate_cli
from compllm.cli import train as train_cli
from compllm.cli.console import INTERRUPTED, TERMINATED, explain, print_json, print_table, say
from compllm.cli.shared import ConfigOption, JsonOption, read_settings
from compllm.errors import ConfigWarning

app = typer.Typer(
    name="compllm",
    help="Composable LLM inference: plan a question, run its parts on experts, compose the answer.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(f"compllm {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    is_version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass  # the option does it


app.command()(ask_cli.ask)
app.command("plan")(plan_cli.make_plan)


@app.command()
def experts(config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """List the experts with their domains, adapters and models.

    They are those of the running server, else those of your settings.
    """
    from compllm.served import catalogue_of

    catalogue = catalogue_of(read_settings(config))
    rows = (*catalogue.experts, catalogue.base)
    if is_json:
        names = ("name", "domain", "adapter", "adapter_id", "model")
        return print_json({"experts": [{n: getattr(row, n) for n in names} for row in rows]})
    print_table(
        ("expert", "domain", "adapter", "model"),
        [(row.name, row.domain, row.adapter or "-", row.model) for row in rows],
    )


app.command()(server_cli.up)
app.command()(server_cli.down)
app.command()(server_cli.status)


@app.command()
def doctor(
    is_json: JsonOption = False,
    is_gpu: Annotated[
        bool,
        typer.Option(
            "--gpu", help="Check what TensorRT-LLM engines need, not the embedded engine."
        ),
    ] = False,
    engines: Annotated[
        Path | None,
        typer.Option(
            "--engines",
            metavar="DIR",
            help="With --gpu: check the engines that build_trtllm.py wrote here.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="Ask this OpenAI-compatible server (http://host:port) what it can do.",
        ),
    ] = None,
) -> None:
    """Report what is installed, what is missing, and what to do.

    Exit status 1 when something is missing.
    """
    from dataclasses import asdict

    from compllm.cli.doctor import examine, is_healthy

    if is_gpu or engines is not None:
        from compllm.cli.doctor_gpu import examine_gpu

        checks = examine_gpu(engines)
    elif url is not None:
        from compllm.cli.doctor_url import examine_url

        checks = examine_url(url)
    else:
        checks = examine()
    if is_json:
        print_json({"is_healthy": is_healthy(checks), "checks": [asdict(c) for c in checks]})
    else:
        rows = [
            (
                check.name,
                check.status,
                check.found + (f"\n-> {check.remedy}" if check.remedy else ""),
            )
            for check in checks
        ]
        print_table(("check", "state", "found"), rows)
    if not is_healthy(checks):
        raise typer.Exit(1)


app.command()(init_cli.init)
app.add_typer(expert_cli.app, name="expert")
app.add_typer(base_cli.app, name="base")
app.command()(route_cli.route)
app.command()(explain_cli.explain)
app.command()(replay_cli.replay)
app.command()(simulate_cli.simulate)
app.command(context_settings=train_cli.PASSED_ON)(train_cli.train)
app.add_typer(eval_cli.app, name="eval")


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", ConfigWarning)
        warnings.showwarning = _show_warning
        return _run_command(arguments)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if issubclass(category, ConfigWarning):
        say(f"warning: {message}")
    else:
        say(warnings.formatwarning(message, category, filename, lineno, line).rstrip())


def _run_command(arguments: list[str] | None) -> int:
    try:
        status = app(args=arguments, prog_name="compllm", standalone_mode=False)
        status = status if isinstance(status, int) else 0
    except SystemExit as end:  # it has said why
        return int(end.code or 0)
    except (KeyboardInterrupt, asyncio.CancelledError, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout left; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # no usage error: the help is its message
            say(explain(error)[0])
            return 2
        if os.environ.get("COMPLLM_DEBUG") == "1":
            raise
        message, status = explain(error)
        say("error: " + " ".join(message.split()))
    if status == INTERRUPTED:  # typer makes it out of a KeyboardInterrupt, silently
        status = TERMINATED if _Terminations.num else INTERRUPTED
        say("terminated" if _Terminations.num else "interrupted")
    return status


class _Terminations:
    """SIGTERM cancels as cleanly as Ctrl-C does; the exit status tells them apart."""

    num = 0

    @classmethod
    def take(cls, _signal: int, _frame: FrameType | None) -> None:
        cls.num += 1
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a script's job in the background
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)


def main() -> None:
    signal.signal(signal.SIGTERM, _Terminations.take)
    sys.exit(run())


if __name__ == "__main__":
    main()
