"""`compllm explain`: where a query's time went, out of what `ask --json` or `replay` wrote.

Needs no server and no engine: the record holds everything.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compllm.cli.console import as_json, named, opened_lines, print_json, say, write
from compllm.errors import ConfigError

if TYPE_CHECKING:
    from compllm.lab.explain import Report
    from compllm.types import Answer

_PICTURES = ("png", "svg")
_PIPE_WIDTH = 120  # columns of a report that is not on a terminal


def explain(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN.json",
            help="What `ask --json` or `replay --json` wrote; '-' reads standard input.",
        ),
    ],
    id: Annotated[
        str | None,
        typer.Option("--id", metavar="ID", help="The record to explain, where there are several."),
    ] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    gantt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw a chart: .png or .svg.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a trace for ui.perfetto.dev or Chrome."),
    ] = None,
) -> None:
    """Report where a query's time went, and what the graph allows.

    RUN.json is what `ask --json` printed, or `replay` wrote.
    """
    from compllm.lab.explain import explain_run, read_run

    picture = _picture_format(gantt)
    with opened_lines(run) as lines:
        report = explain_run(read_run(lines, named(run), id))
    if gantt is not None:
        from compllm.lab.explain.gantt import draw_gantt

        write(draw_gantt(report, "svg" if picture == "svg" else "png"), gantt)
    if trace is not None:
        from compllm.lab.explain.perfetto import trace_of

        write(as_json(trace_of(report)), trace)
    if is_json:
        print_json(report.to_dict())
    else:
        print_report(report)
    for path in (gantt, trace):
        if path is not None:
            say(f"wrote {path}")


def print_report(report: Report, *, is_stderr: bool = False) -> None:
    """The report's tables."""
    from rich.console import Console

    console = Console(stderr=is_stderr)
    if not console.is_terminal:
        console = Console(stderr=is_stderr, width=_PIPE_WIDTH)
    console.print(report)


def print_answer(answer: Answer, *, is_explained: bool, is_json: bool) -> None:
    """What `ask` prints once the answer is there: the JSON object, the report."""
    from compllm.lab.explain import explain_run, run_of
    from compllm.trace import answer_to_dict

    if not (is_json or is_explained):
        return
    record = answer_to_dict(answer)
    report = explain_run(run_of(record)) if is_explained else None
    if is_json:
        print_json({**record, **({"explain": report.to_dict()} if report else {})})
    elif report:
        print_report(report, is_stderr=True)


def _picture_format(path: Path | None) -> str:
    """By the file's name, before any work is done."""
    found = "" if path is None else path.suffix.lower().removeprefix(".")
    if path is not None and found not in _PICTURES:
        raise ConfigError(f"--gantt {path}: expected a file that ends in .png or .svg")
    return found
