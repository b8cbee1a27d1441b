"""The `compllm` command: ask, plan, experts, up, down, status, doctor. The path's face for people.

stdout carries results alone (the answer, or one JSON object), stderr the picture and the errors. An
error is one line and exit status 2 (bad input or configuration) or 1 (a failure at run time); with
COMPLLM_DEBUG=1 it is a traceback. Heavy modules are imported inside the commands, so that `--help`
answers at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from compllm.errors import CompllmError, ConfigError, PlanError, QueryError, ServerError

if TYPE_CHECKING:
    from compllm.config import Config
    from compllm.embedded.tritonserver import ServerInfo
    from compllm.types import Plan, Query, Route

T = TypeVar("T")

app = typer.Typer(
    name="compllm",
    help="Composable LLM inference: plan a question, run its parts on experts, compose the answer.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
# typer may carry its own copy of click: the root of its usage errors, by way of a public one.
_UsageError: type[Any] = typer.BadParameter.__mro__[2]

_INTERRUPTED = 130  # exit status, as shells have it
_MAX_INPUT_BYTES = (
    4_000_000  # of standard input and plan files, before any limit of the configuration
)


class Compose(StrEnum):
    always = "always"
    auto = "auto"
    never = "never"


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
    typer.Option("--plan", metavar="FILE", help="Run this plan; '-' is standard input."),
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="HOST:PORT", help="Triton's gRPC; default: `compllm up`'s."),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings as TOML.")
]
DeadlineOption = Annotated[
    float | None, typer.Option("--deadline", min=0.001, metavar="SECONDS", help="Time for it all.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def ask(
    query: QueryArgument = None,
    plan: PlanOption = None,
    url: UrlOption = None,
    compose: Annotated[
        Compose | None, typer.Option(help="When the base writes the answer out of the leaves.")
    ] = None,
    deadline: DeadlineOption = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of the answer.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer a question.

    The graph is shown live on stderr, the answer is streamed on stdout.
    """
    from compllm.types import Query, SamplingParams

    settings = _settings(config, url, {"compose.policy": compose and compose.value})
    given = _read_plan(plan, settings) if plan else None
    sampling = SamplingParams(
        max_tokens=max_tokens or settings.limits.max_answer_tokens,
        temperature=temperature,
        seed=seed,
    )
    text = _read_query(query, plan)
    answer_query = Query(text, deadline_s=deadline, sampling=sampling)
    _run(_ask(answer_query, given, _with_server(settings), is_json=as_json))


async def _ask(query: Query, plan: Plan | None, settings: Config, *, is_json: bool) -> None:
    from rich.console import Console

    from compllm.pipeline import CompLLM
    from compllm.trace import answer_to_dict
    from compllm.view import footer, show

    async with await CompLLM.connect(settings) as llm:
        if is_json:
            _print_json(answer_to_dict(await llm.ask(query, plan=plan)))
            return
        console = Console(stderr=True)
        answer = await show(llm.stream(query, plan=plan), console)
    console.print(footer(answer), style="dim", markup=False, highlight=False)


@app.command("plan")
def make_plan(
    query: QueryArgument = None,
    plan: PlanOption = None,
    format: Annotated[PlanFormat, typer.Option("--format", "-f")] = PlanFormat.text,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: stdout.")
    ] = None,
    url: UrlOption = None,
    deadline: DeadlineOption = None,
    config: ConfigOption = None,
) -> None:
    """Plan a question without answering it.

    With --plan, check and draw a plan file instead; that needs no server.
    """
    from compllm.types import Query

    if format is PlanFormat.png and output is None and sys.stdout.isatty():
        raise ConfigError("a picture is not for a terminal: give --output FILE or redirect stdout")
    settings = _settings(config, url)
    routes: tuple[Route, ...] = ()
    if plan is not None:
        if query is not None:
            raise ConfigError("give a question or --plan FILE, not both")
        made = _read_plan(plan, settings)
    else:
        asked = Query(_read_query(query), deadline_s=deadline)
        made, routes = _run(_plan(asked, _with_server(settings)))
    _write(_render(made, routes, format, settings), output)
    if made.is_fallback:
        _say(f"the generator's plan was unusable, this is the fall-back: {made.reason}")


async def _plan(query: Query, settings: Config) -> tuple[Plan, tuple[Route, ...]]:
    from compllm.pipeline import CompLLM

    async with await CompLLM.connect(settings) as llm:
        return await llm.plan(query)


def _render(
    plan: Plan, routes: tuple[Route, ...], format: PlanFormat, settings: Config
) -> str | bytes:
    from compllm.draw import draw_png
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
    return _as_json(_plan_to_dict(plan, routes))


def _plan_to_dict(plan: Plan, routes: tuple[Route, ...]) -> dict[str, Any]:
    from compllm.trace import plan_to_dict

    routed = [
        {"id": sub_query.id, "expert": route.expert, "similarity": round(route.similarity, 4)}
        for sub_query, route in zip(plan.sub_queries, routes, strict=bool(routes))
    ]
    return {"plan": plan_to_dict(plan), "routes": routed}


@app.command()
def experts(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the experts: for what, on which adapter."""
    from compllm.catalogue import load_catalogue

    settings = _settings(config)
    catalogue = load_catalogue(Path(settings.catalogue) if settings.catalogue else None)
    rows = (*catalogue.experts, catalogue.base)
    if as_json:
        names = ("name", "domain", "adapter", "adapter_id", "model")
        return _print_json({"experts": [{n: getattr(row, n) for n in names} for row in rows]})
    _print_table(
        ("expert", "domain", "adapter", "model"),
        [(row.name, row.domain, row.adapter or "-", row.model) for row in rows],
    )


@app.command()
def up(
    port: Annotated[int, typer.Option(min=0, max=65535, help="gRPC; 0 takes a free one.")] = 0,
    http_port: Annotated[int, typer.Option(min=0, max=65535)] = 0,
    metrics_port: Annotated[int, typer.Option(min=0, max=65535)] = 0,
    timeout: Annotated[float, typer.Option(min=1.0, metavar="SECONDS")] = 60.0,
) -> None:
    """Start the embedded server.

    It listens on loopback. What it needs (base model, encoder, engine) is made first where missing.
    """
    from compllm.embedded import tritonserver
    from compllm.prepare import prepare

    prepare()
    server = tritonserver.up(
        grpc_port=port or None,
        http_port=http_port or None,
        metrics_port=metrics_port or None,
        timeout_s=timeout,
    )
    _print_server(server)


@app.command()
def down() -> None:
    """Stop the server that `up` started."""
    from compllm.embedded import tritonserver

    print("stopped" if tritonserver.down() else "no server was running")


@app.command()
def status(as_json: JsonOption = False) -> None:
    """Tell which server is running.

    Exit status 1 when there is none.
    """
    from compllm.embedded import tritonserver

    server = tritonserver.status()
    if as_json:
        _print_json({"is_running": server is not None, **(_server_facts(server) if server else {})})
    elif server is None:
        print("not running: start it with `compllm up`")
    else:
        _print_server(server)
    if server is None:
        raise typer.Exit(1)


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Tell what is installed, what is missing, what to do.

    Exit status 1 when something is missing.
    """
    from dataclasses import asdict

    from compllm.doctor import examine, is_healthy

    checks = examine()
    if as_json:
        _print_json({"is_healthy": is_healthy(checks), "checks": [asdict(c) for c in checks]})
    else:
        rows = [
            (
                check.name,
                check.status,
                check.found + (f"\n-> {check.remedy}" if check.remedy else ""),
            )
            for check in checks
        ]
        _print_table(("check", "state", "found"), rows)
    if not is_healthy(checks):
        raise typer.Exit(1)


def _settings(
    path: Path | None, url: str | None = None, overrides: dict[str, object] | None = None
) -> Config:
    from compllm.config import load_config

    return load_config(path, {"server.url": url, **(overrides or {})})


def _with_server(settings: Config) -> Config:
    """The settings with a server's address: the given one, or the one that is running here."""
    from dataclasses import replace

    if settings.server.url:
        return settings
    try:
        from compllm.embedded import tritonserver
    except ImportError as error:
        raise ServerError(
            f"no server is named: give --url HOST:PORT (the embedded one is not here: {error})"
        ) from error
    server = tritonserver.status()
    if server is None:
        raise ServerError(
            "no server is running: start one with `compllm up`, or name one with --url HOST:PORT"
        )
    return replace(settings, server=replace(settings.server, url=server.grpc_url))


def _read_query(argument: str | None, plan: Path | None = None) -> str:
    """The question: an argument, or standard input for '-'."""
    if argument is None:
        raise ConfigError("no question: give one, or '-' to read it from standard input")
    if argument == "-":
        if plan == Path("-"):
            raise ConfigError("the question and the plan cannot both be standard input")
        argument = _decode(sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1), "standard input")
    if not argument.strip():
        raise ConfigError("the question is empty")
    return argument.strip()


def _read_plan(path: Path, settings: Config) -> Plan:
    from compllm.plan import parse_plan

    if path == Path("-"):
        return parse_plan(
            _decode(sys.stdin.buffer.read(_MAX_INPUT_BYTES + 1), "standard input"),
            settings.limits.plan,
        )
    try:
        with path.open("rb") as handle:
            content = handle.read(_MAX_INPUT_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read the plan {path}: {error.strerror}") from error
    return parse_plan(_decode(content, str(path)), settings.limits.plan)


def _decode(content: bytes, origin: str) -> str:
    if len(content) > _MAX_INPUT_BYTES:
        raise ConfigError(f"{origin} has more than {_MAX_INPUT_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{origin} is not UTF-8 text (byte {error.start})") from error


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run it; Ctrl-C cancels it, and with it its requests at the engine, and ends the command."""
    return asyncio.run(work)


def _write(content: str | bytes, output: Path | None) -> None:
    data = content.encode() if isinstance(content, str) else content
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        output.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from error


def _server_facts(server: ServerInfo) -> dict[str, object]:
    return {
        "grpc": server.grpc_url,
        "http": server.http_url,
        "metrics": server.metrics_url,
        "process": server.server_pid,
        "engine": server.engine_dir,
        "log": server.log,
    }


def _print_server(server: ServerInfo) -> None:
    for name, value in _server_facts(server).items():
        print(f"{name:<8} {value}")


def _as_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _print_json(value: object) -> None:
    print(_as_json(value), end="")


def _print_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in header:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    # A pipe has no width; the usual guess of 80 columns would break paths.
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _say(message: str) -> None:
    print(message, file=sys.stderr)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; return its exit status."""
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
        if os.environ.get("COMPLLM_DEBUG") == "1":
            raise
        message, status = _explain(error)
        _say("error: " + " ".join(message.split()))
    if status == _INTERRUPTED:  # typer makes it out of a KeyboardInterrupt, silently
        _say("interrupted")
    return status


def _explain(error: BaseException) -> tuple[str, int]:
    """One line about the error, and the exit status."""
    if isinstance(error, BaseExceptionGroup):
        ours = error.subgroup(CompllmError)
        return _explain((ours or error).exceptions[0])
    if isinstance(error, _UsageError):
        return error.format_message(), 2
    if isinstance(error, ConfigError | PlanError | QueryError):
        return str(error), 2
    if isinstance(error, CompllmError):
        return str(error), 1
    if isinstance(error, ImportError):
        return f"{error}: pip install 'compllm[embedded]', then see `compllm doctor`", 1
    details = "COMPLLM_DEBUG=1 shows where"
    return f"unexpected {type(error).__name__}: {error} ({details})", 1


def main() -> None:
    # `kill` cancels as cleanly as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    sys.exit(run())


if __name__ == "__main__":
    main()
