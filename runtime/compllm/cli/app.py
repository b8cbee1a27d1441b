"""The `compllm` command: ask, plan, explain, up, down, status, doctor.

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
from collections.abc import Coroutine
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, TypeVar

import typer

from compllm import __version__
from compllm.cli import eval as eval_cli
from compllm.cli import explain as explain_cli
from compllm.cli import replay as replay_cli
from compllm.cli import route as route_cli
from compllm.cli import server as server_cli
from compllm.cli import simulate as simulate_cli
from compllm.cli import train as train_cli
from compllm.cli.console import (
    STDIN,
    as_json,
    explain,
    print_json,
    print_table,
    read_text,
    say,
    write,
)
from compllm.cli.shared import Compose, Gate, with_server
from compllm.errors import ConfigError, ConfigWarning
from compllm.gc_freeze import freeze_startup_objects
from compllm.plural import counted

if TYPE_CHECKING:
    from rich.console import Console

    from compllm.config import Config
    from compllm.pipeline import CompLLM
    from compllm.types import Answer, Plan, Query, Route

T = TypeVar("T")

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


_INTERRUPTED = 130  # exit status, as shells have it


class PlanFormat(StrEnum):
    text = "text"
    json = "json"
    mermaid = "mermaid"
    dot = "dot"
    png = "png"


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
        help="A TOML file of settings; default: the settings of the running server.",
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


@app.command()
def ask(
    query: QueryArgument = None,
    plan: PlanOption = None,
    url: UrlOption = None,
    is_whole: Annotated[
        bool,
        typer.Option(
            "--no-plan", help="Write no plan: send the whole question to one expert or the base."
        ),
    ] = False,
    gate: GateOption = None,
    compose: Annotated[
        Compose | None,
        typer.Option(
            help="When a model writes the answer out of the sub-queries' responses; auto: where "
            "there are several. Default: compose.policy."
        ),
    ] = None,
    deadline: DeadlineOption = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Tokens of the answer at most; default: limits.max_answer_tokens (192).",
        ),
    ] = None,
    temperature: Annotated[
        float,
        typer.Option(
            min=0.0,
            metavar="T",
            help="How freely the answer's tokens are drawn; 0 always takes the likeliest.",
        ),
    ] = 0.0,
    seed: Annotated[
        int,
        typer.Option(
            min=0, metavar="N", help="Of the random draws, where the temperature is not 0."
        ),
    ] = 0,
    is_explained: Annotated[
        bool,
        typer.Option("--explain", help="Report where the time went, on stderr or in the JSON."),
    ] = False,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Answer a question.

    The graph is shown live on stderr, the answer is streamed on stdout.
    """
    from compllm.plan import direct_plan
    from compllm.types import Query, SamplingParams

    if is_whole and plan is not None:
        raise ConfigError("give --plan FILE or --no-plan, not both")
    overrides: dict[str, object] = {
        "compose.policy": compose and compose.value,
        "gate.mode": gate and gate.value,
    }
    settings = _settings(config, url, overrides)
    given = _read_plan(plan, settings) if plan else None
    sampling = SamplingParams(
        max_tokens=max_tokens or settings.limits.max_answer_tokens,
        temperature=temperature,
        seed=seed,
    )
    text = _read_query(query, plan)
    given = direct_plan(text) if is_whole else given
    answer_query = Query(text, deadline_s=deadline, sampling=sampling)
    answer = _run(_ask(answer_query, given, with_server(settings)[0], is_live=not is_json))
    explain_cli.print_answer(answer, is_explained=is_explained, is_json=is_json)


async def _ask(query: Query, plan: Plan | None, settings: Config, *, is_live: bool) -> Answer:
    from rich.console import Console

    from compllm.cli.view import footer, show

    console = Console(stderr=True)
    async with await _connect(settings, console) as llm:
        if not is_live:
            return await llm.ask(query, plan=plan)
        answer = await show(llm.stream(query, plan=plan), console)
    console.print(footer(answer), style="dim", markup=False, highlight=False, soft_wrap=True)
    return answer


async def _connect(settings: Config, console: Console) -> CompLLM:
    """Loading the encoder takes a second or more: a terminal shows it."""
    with console.status("loading the encoder"):
        from compllm.pipeline import CompLLM

        llm = await CompLLM.connect(settings)
        freeze_startup_objects()
        return llm


@app.command("plan")
def make_plan(
    query: QueryArgument = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="Check and draw this plan instead of making one; '-' reads standard input.",
        ),
    ] = None,
    gate: GateOption = None,
    format: Annotated[
        PlanFormat, typer.Option("--format", "-f", help="How the plan is printed or drawn.")
    ] = PlanFormat.text,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where the plan goes; default: standard output."
        ),
    ] = None,
    questions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Plan each line of a file, {'question': ...}; '-' reads standard input.",
        ),
    ] = None,
    json_output: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="OUT",
            help="With --questions: where the lines go; a file is continued after its last line. "
            "Default: standard output.",
        ),
    ] = None,
    concurrency: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="With --questions: how many are planned at a time."),
    ] = 32,
    url: UrlOption = None,
    deadline: DeadlineOption = None,
    config: ConfigOption = None,
) -> None:
    """Plan a question without answering it.

    With --plan, check and draw a plan file instead; that needs no server. With --questions, plan a
    file of them: its lines come out with "steps", "parents" (from 0) and "is_fallback".
    """
    from compllm.plan import cut_warning
    from compllm.types import Query

    if format is PlanFormat.png and output is None and sys.stdout.isatty():
        raise ConfigError("a picture is not for a terminal: give --output FILE or redirect stdout")
    settings = _settings(config, url, {"gate.mode": gate and gate.value})
    if questions is not None:
        if query is not None or plan is not None:
            raise ConfigError("give a question, --plan FILE or --questions FILE, not two of them")
        return _run(_plan_file(questions, json_output, concurrency, settings))
    if json_output is not None:
        raise ConfigError("--json OUT goes with --questions FILE; a single plan: --format json")
    routes: tuple[Route, ...] = ()
    if plan is not None:
        if query is not None:
            raise ConfigError("give a question or --plan FILE, not both")
        made = _read_plan(plan, settings)
    else:
        asked = Query(_read_query(query), deadline_s=deadline)
        made, routes = _run(_plan(asked, with_server(settings)[0]))
    write(_render(made, routes, format, settings), output)
    if made.is_fallback:
        say(f"the generator's plan was unusable, this is the fall-back: {made.reason}")
    if warning := cut_warning(made):
        say(f"warning: {warning}")


async def _plan(query: Query, settings: Config) -> tuple[Plan, tuple[Route, ...]]:
    from rich.console import Console

    async with await _connect(settings, Console(stderr=True)) as llm:
        return await llm.plan(query)


async def _plan_file(questions: Path, out: Path | None, concurrency: int, settings: Config) -> None:
    from rich.console import Console

    from compllm.cli.plan import patient, plan_questions
    from compllm.cli.question_file import check_questions

    out = None if out == STDIN else out
    total = check_questions(questions, out)
    async with await _connect(patient(with_server(settings)[0]), Console(stderr=True)) as llm:
        num_planned, num_fallbacks = await plan_questions(llm, questions, out, concurrency, total)
    say(f"{counted(num_planned, 'question')} planned, {num_fallbacks} by the fall-back")


def _render(
    plan: Plan, routes: tuple[Route, ...], format: PlanFormat, settings: Config
) -> str | bytes:
    from compllm.cli.draw import draw_png
    from compllm.graph import QueryGraph
    from compllm.plan import format_plan

    if format is PlanFormat.text:
        return format_plan(plan.sub_queries)
    limits = settings.limits
    graph = QueryGraph.from_plan(plan, max_nodes=limits.max_nodes, max_depth=limits.max_depth)
    experts = {
        sub_query.id: route.expert
        for sub_query, route in zip(plan.sub_queries, routes, strict=bool(routes))
    }
    match format:
        case PlanFormat.mermaid:
            return graph.to_mermaid(experts)
        case PlanFormat.dot:
            return graph.to_dot(experts)
        case PlanFormat.png:
            return draw_png(graph, experts)
    return as_json(_plan_to_dict(plan, routes))


def _plan_to_dict(plan: Plan, routes: tuple[Route, ...]) -> dict[str, Any]:
    from compllm.trace import plan_to_dict

    routed = [
        {"id": sub_query.id, "expert": route.expert, "similarity": round(route.similarity, 4)}
        for sub_query, route in zip(plan.sub_queries, routes, strict=bool(routes))
    ]
    return {"plan": plan_to_dict(plan), "routes": routed}


@app.command()
def experts(config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """List the experts with their domains, adapters and models.

    They are those of the running server, else those of your settings.
    """
    from compllm.served import catalogue_of

    catalogue = catalogue_of(_settings(config))
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
) -> None:
    """Report what is installed, what is missing, and what to do.

    Exit status 1 when something is missing.
    """
    from dataclasses import asdict

    from compllm.cli.doctor import examine, is_healthy

    if is_gpu or engines is not None:
        from compllm.cli.doctor_gpu import examine_gpu

        checks = examine_gpu(engines)
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


app.command()(route_cli.route)
app.command()(explain_cli.explain)
app.command()(replay_cli.replay)
app.command()(simulate_cli.simulate)
app.command(context_settings=train_cli.PASSED_ON)(train_cli.train)
app.add_typer(eval_cli.app, name="eval")


def _settings(
    path: Path | None, url: str | None = None, overrides: dict[str, object] | None = None
) -> Config:
    from compllm.connect import load_client_config

    return load_client_config(path, {"server.url": url, **(overrides or {})})


def _read_query(argument: str | None, plan: Path | None = None) -> str:
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


def _read_plan(path: Path, settings: Config) -> Plan:
    from compllm.plan import parse_plan

    return parse_plan(read_text(path), settings.limits.plan)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run it; Ctrl-C cancels it, and with it its requests at the engine, and ends the command."""
    return asyncio.run(work)


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
    except (KeyboardInterrupt, asyncio.CancelledError, typer.Abort):
        status = _INTERRUPTED
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
    if status == _INTERRUPTED:  # typer makes it out of a KeyboardInterrupt, silently
        say("interrupted")
    return status


def main() -> None:
    # `kill` cancels as cleanly as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.exit(run())


if __name__ == "__main__":
    main()
