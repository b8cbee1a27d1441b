"""`compllm plan`: plan one question, check and draw a plan file, or plan a file of questions.

A file of questions may have any length, and many are planned at a time. JSON lines in, each with a
"question"; the same lines out, in the same order, each with "steps", "parents" (counted from 0) and
"is_fallback". A question that cannot be planned, a too long one for instance, has itself as its one
step and the reason as "error". A line is written the moment it and those before it are planned. A
run that is stopped goes on behind the last line of its output.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from compllm.cli.console import STDIN, as_json, progress, say, write
from compllm.cli.question_file import Question, Record, appended, check_questions, unanswered
from compllm.cli.shared import (
    ConfigOption,
    DeadlineOption,
    GateOption,
    QueryArgument,
    UrlOption,
    connected,
    read_plan,
    read_query,
    read_settings,
    run_work,
    with_server,
)
from compllm.errors import ConfigError, QueryError, ServerError
from compllm.plural import counted

if TYPE_CHECKING:
    from compllm.config import Config
    from compllm.pipeline import CompLLM
    from compllm.types import Plan, Query, Route

_KEYS = ("steps", "parents", "is_fallback")  # a line's own, in this order
_PATIENCE_S = 3600.0  # of a plan: in a batch its wait is the batch's own doing
_PROBE_S = 5.0


class PlanFormat(StrEnum):
    text = "text"
    json = "json"
    mermaid = "mermaid"
    dot = "dot"
    png = "png"


CheckedPlanOption = Annotated[
    Path | None,
    typer.Option(
        "--plan",
        metavar="FILE",
        help="Check and draw this plan instead of making one; '-' reads standard input.",
    ),
]
FormatOption = Annotated[
    PlanFormat, typer.Option("--format", "-f", help="How the plan is printed or drawn.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", metavar="FILE", help="Where the plan goes; default: standard output."
    ),
]
QuestionsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Plan each line of a file, {'question': ...}; '-' reads standard input.",
    ),
]
LinesOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="OUT",
        help="With --questions: where the lines go; a file is continued after its last line. "
        "Default: standard output.",
    ),
]
ConcurrencyOption = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="With --questions: how many are planned at a time."),
]


def make_plan(
    query: QueryArgument = None,
    plan: CheckedPlanOption = None,
    gate: GateOption = None,
    format: FormatOption = PlanFormat.text,
    output: OutputOption = None,
    questions: QuestionsOption = None,
    json_output: LinesOption = None,
    concurrency: ConcurrencyOption = 32,
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
    settings = read_settings(config, url, {"gate.mode": gate and gate.value})
    if questions is not None:
        if query is not None or plan is not None:
            raise ConfigError("give a question, --plan FILE or --questions FILE, not two of them")
        return run_work(_plan_file(questions, json_output, concurrency, settings))
    if json_output is not None:
        raise ConfigError("--json OUT goes with --questions FILE; a single plan: --format json")
    routes: tuple[Route, ...] = ()
    if plan is not None:
        if query is not None:
            raise ConfigError("give a question or --plan FILE, not both")
        made = read_plan(plan, settings)
    else:
        asked = Query(read_query(query), deadline_s=deadline)
        made, routes = run_work(_plan_one(asked, with_server(settings)[0]))
    write(_render(made, routes, format, settings), output)
    if made.is_fallback:
        say(f"the generator's plan was unusable, this is the fall-back: {made.reason}")
    if warning := cut_warning(made):
        say(f"warning: {warning}")


async def _plan_one(query: Query, settings: Config) -> tuple[Plan, tuple[Route, ...]]:
    from rich.console import Console

    async with await connected(settings, Console(stderr=True)) as llm:
        return await llm.plan(query)


async def _plan_file(questions: Path, out: Path | None, concurrency: int, settings: Config) -> None:
    from rich.console import Console

    out = None if out == STDIN else out
    total = check_questions(questions, out)
    async with await connected(patient(with_server(settings)[0]), Console(stderr=True)) as llm:
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


def patient(settings: Config) -> Config:
    """The settings with time-outs for a plan that shares the engine with many others."""
    timeouts = settings.timeouts
    return replace(
        settings,
        timeouts=replace(
            timeouts,
            plan_s=max(timeouts.plan_s, _PATIENCE_S),
            query_s=max(timeouts.query_s, _PATIENCE_S),
        ),
    )


async def plan_questions(
    llm: CompLLM, questions: Path, out: Path | None, concurrency: int, total: int | None = None
) -> tuple[int, int]:
    """Plan every question that `out` (None: standard output) has no line for yet; returns how many
    these were, and how many of them fell back. total: for the progress bar.

    Raises ConfigError for a bad line or an output that belongs to other questions, and ServerError
    when the server goes away; what was planned before is written then.
    """
    lines, num_there, _ = unanswered(questions, out, _KEYS)
    num_planned = num_fallbacks = 0
    pending: deque[asyncio.Task[Record]] = deque()
    with appended(out) as write, progress(total) as advance:
        advance(num_there)

        async def write_first() -> None:
            nonlocal num_fallbacks
            record = await pending[0]
            pending.popleft()
            write([record])
            num_fallbacks += record["is_fallback"]
            advance(1)

        try:
            # In a thread: standard input may keep us waiting while plans are under way.
            while (question := await asyncio.to_thread(next, lines, None)) is not None:
                while len(pending) >= concurrency:
                    await write_first()
                pending.append(asyncio.create_task(_plan(llm, question)))
                num_planned += 1
            while pending:
                await write_first()
        except ConfigError:
            while pending:  # of lines before the bad one: what was begun is not thrown away
                await write_first()
            raise
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
    return num_planned, num_fallbacks


async def _plan(llm: CompLLM, question: Question) -> Record:
    from compllm.types import Query

    try:
        plan, _ = await llm.plan(Query(question.text))
    except QueryError as error:  # too long, for instance: the others can be planned still
        alone = {"steps": [question.text], "parents": [[]], "is_fallback": True}
        return {**question.record, **alone, "error": str(error)}
    if plan.is_fallback and await _is_gone(llm.config.server.url):
        raise ServerError(
            f"the server went away at line {question.number} ({plan.reason}): start it again, the "
            "same command goes on from there"
        )
    return {
        **question.record,
        "steps": [sub_query.text for sub_query in plan.sub_queries],
        "parents": [[parent - 1 for parent in s.parents] for s in plan.sub_queries],
        "is_fallback": plan.is_fallback,
        **({"is_cut": True} if plan.is_cut else {}),
        **({"num_copies": plan.num_copies} if plan.num_copies else {}),
    }


async def _is_gone(url: str) -> bool:
    """Whether no server listens there. A generator that fails is a fall-back plan; a server that
    ended must not turn the rest of the file into them."""
    host, _, port = url.rpartition(":")
    if not host:
        return False
    try:
        async with asyncio.timeout(_PROBE_S):
            _, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    except (OSError, TimeoutError):
        return True
    writer.close()
    return False
