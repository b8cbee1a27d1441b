"""The live picture of a query on a terminal: plan, node states, experts, times. For `compllm ask`.

`GraphView` keeps what the events said and draws itself as one table. On a terminal rich repaints it
until the answer begins; elsewhere (a log, a pipe) each event becomes a line.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from compllm.confidence import is_unknown
from compllm.plan import cut_warning
from compllm.plural import counted
from compllm.printable import printable
from compllm.types import (
    Answer,
    AnswerDelta,
    AnswerFinished,
    Event,
    NodeFinished,
    NodeResult,
    NodeStarted,
    NodeStatus,
    PlanFinished,
    Route,
    SubQuery,
    SubQueryPlanned,
)

_STYLES: dict[NodeStatus, str] = {
    "waiting": "dim",
    "ready": "yellow",
    "running": "bold cyan",
    "done": "green",
    "failed": "bold red",
    "skipped": "red",
    "cancelled": "red",
}
_BAR_WIDTHS = range(24, 7, -1)  # characters of the time line; where fewer are left there is none
_TEXT_WIDTH = 30  # of the sub-query: below it the time line gets shorter, then goes ...
_LEAST_TEXT = 16  # ... and below this the router's score goes, then the seconds
_GAP = 2  # between two columns
_REFRESH_PER_S = 10


@dataclass(slots=True)
class _Row:
    sub_query: SubQuery
    route: Route | None = None
    expert: str = ""
    status: NodeStatus = "waiting"
    start_s: float | None = None
    result: NodeResult | None = None


@dataclass(frozen=True, slots=True)
class _Layout:
    """What a terminal of some width has room for, next to the sub-query."""

    bar_width: int = 0  # 0: no time line
    has_score: bool = True
    has_seconds: bool = True


class GraphView:
    """What is known of a running query. `apply` takes the events in their order; rich draws it.

    clock: seconds; what runs is drawn up to its now. Make the view when the query starts.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begin_s = clock()
        self._rows: dict[int, _Row] = {}
        self._plan_note = "planning"
        self._last_s = 0.0  # newest time of an event

    def apply(self, event: Event) -> None:
        match event:
            case SubQueryPlanned(sub_query, route):
                self._rows[sub_query.id] = _Row(sub_query, route, route.expert)
                self._mark_ready(sub_query.id)
            case PlanFinished(plan):
                planned = {sub_query.id: sub_query for sub_query in plan.sub_queries}
                # A fall-back replaces what was planned so far.
                self._rows = {
                    id: row
                    for id, row in self._rows.items()
                    if id in planned and row.sub_query == planned[id]
                }
                for id, sub_query in planned.items():
                    self._rows.setdefault(id, _Row(sub_query))
                    self._mark_ready(id)
                self._plan_note = (
                    f"fall-back: {plan.reason}" if plan.is_fallback else cut_warning(plan) or ""
                )
            case NodeStarted(id, expert, at_s):
                if row := self._rows.get(id):
                    row.status, row.expert, row.start_s = "running", expert, at_s
                    self._last_s = max(self._last_s, at_s)
            case NodeFinished(result):
                if row := self._rows.get(result.id):
                    row.status, row.expert, row.result = result.status, result.expert, result
                    self._last_s = max(self._last_s, result.end_s)
                    for id in self._rows:
                        self._mark_ready(id)
            case AnswerDelta() | AnswerFinished():
                pass

    def _mark_ready(self, id: int) -> None:
        row = self._rows[id]
        if row.status == "waiting" and all(
            parent in self._rows and self._rows[parent].result for parent in row.sub_query.parents
        ):
            row.status = "ready"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table(_layout(self._rows.values(), options.max_width))

    def _table(self, layout: _Layout) -> Table:
        is_running = any(row.status == "running" for row in self._rows.values())
        now_s = max(self._last_s, self._clock() - self._begin_s) if is_running else self._last_s
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("#", justify="right")
        table.add_column("sub-query", overflow="fold")
        table.add_column("expert", no_wrap=True)
        table.add_column("state", no_wrap=True)
        if layout.has_seconds:
            table.add_column("seconds", justify="right", no_wrap=True)
        if layout.bar_width:
            table.add_column("time line", no_wrap=True, min_width=layout.bar_width)
        for row in self._rows.values():
            table.add_row(*_cells(row, now_s, layout))
        if self._plan_note:
            table.add_row("", Text(printable(self._plan_note), style="dim italic"))
        return table


def _layout(rows: Collection[_Row], width: int) -> _Layout:
    """The sub-query comes first: less important columns give way to it."""
    layouts = (*(_Layout(each) for each in _BAR_WIDTHS), _Layout())
    for layout in layouts:
        if width - _taken(rows, layout) >= _TEXT_WIDTH:
            return layout
    for layout in (_Layout(), _Layout(has_score=False)):
        if width - _taken(rows, layout) >= _LEAST_TEXT:
            return layout
    return _Layout(has_score=False, has_seconds=False)


def _taken(rows: Collection[_Row], layout: _Layout) -> int:
    """Characters of all columns but the sub-query's, with the gaps."""
    score = len(" 0.00") if layout.has_score else 0
    widths = [
        max((len(str(row.sub_query.id)) for row in rows), default=1),
        max((len(row.expert) + score for row in rows), default=len("expert")),
        max((len(row.status) for row in rows), default=len("state")),
    ]
    widths += [len("seconds")] if layout.has_seconds else []
    widths += [layout.bar_width] if layout.bar_width else []
    return sum(widths) + _GAP * len(widths)


def _cells(row: _Row, now_s: float, layout: _Layout) -> tuple[Text, ...]:
    style = _STYLES[row.status]
    text = Text(printable(row.sub_query.text))
    if row.sub_query.parents:
        text.append(f"  after {', '.join(map(str, row.sub_query.parents))}", style="dim")
    if row.result and (said := row.result.response or row.result.error):
        text.append("\n" + " ".join(printable(said).split()), style=style)
    expert = Text(row.expert or "-")
    if row.route and layout.has_score:
        expert.append(f" {row.route.similarity:.2f}", style="dim")
    end_s = row.result.end_s if row.result else now_s
    seconds = "" if row.start_s is None else f"{end_s - row.start_s:.2f}"
    cells = [Text(str(row.sub_query.id)), text, expert, Text(row.status, style=style)]
    if layout.has_seconds:
        cells.append(Text(seconds))
    if layout.bar_width:
        cells.append(Text(_bar(row.start_s, end_s, now_s, layout.bar_width), style=style))
    return tuple(cells)


def _bar(start_s: float | None, end_s: float, now_s: float, width: int) -> str:
    """The node's interval on a line from the query's start to now."""
    if start_s is None or now_s <= 0:
        return ""
    scale = width / now_s
    left = min(int(start_s * scale), width - 1)
    return " " * left + "━" * max(1, round(end_s * scale) - left)


def describe(event: Event) -> str | None:
    """One line for a log, or None where there is nothing to report."""
    match event:
        case SubQueryPlanned(sub_query, route):
            after = f" after {', '.join(map(str, sub_query.parents))}" if sub_query.parents else ""
            return (
                f"planned  {sub_query.id}{after}: {printable(sub_query.text)} "
                f"-> {route.expert} ({route.similarity:.2f})"
            )
        case PlanFinished(plan):
            note = f" (fall-back: {printable(plan.reason)})" if plan.is_fallback else ""
            note += f" (warning: {warning})" if (warning := cut_warning(plan)) else ""
            return f"plan     {counted(len(plan.sub_queries), 'sub-query')}{note}"
        case NodeStarted(id, expert, at_s):
            return f"started  {id} on {expert} at {at_s:.2f} s"
        case NodeFinished(result):
            said = " ".join(printable(result.response or result.error or "").split())
            return f"{result.status:<8} {result.id} at {result.end_s:.2f} s: {said}"
        case AnswerDelta() | AnswerFinished():
            return None


def footer(answer: Answer) -> str:
    """Where the time went, in one line.

    Its parts one after another are no measurement: side by side they slowed one another.
    """
    timings = answer.timings
    work_s = sum(node.end_s - node.start_s for node in answer.nodes)
    line = (
        f"{counted(len(answer.nodes), 'node')} in {timings.total_s:.2f} s: "
        f"plan {timings.plan_s:.2f}, experts {timings.execute_s:.2f}, "
        f"answer begun at {timings.first_token_s:.2f}; "
        f"one after another about {timings.plan_s + work_s + timings.compose_s:.2f}"
    )
    if answer.confidence is not None:
        line += f"\n{_confidence(answer, answer.confidence)}"
    if warning := cut_warning(answer.plan):
        line += f"\nwarning: {warning}"
    if answer.is_partial:
        line += f"\npartial answer: {printable(answer.error or 'a node failed')}"
    return line


def _confidence(answer: Answer, confidence: float) -> str:
    if is_unknown(answer.text):
        if confidence == 0:  # a model said so itself
            return "no answer was found"
        return (
            "an answer was found but withheld: the withheld answer's confidence is "
            f"{confidence:.0%}, below the threshold"
        )
    return f"{'low ' if answer.is_low_confidence else ''}confidence {confidence:.0%}"


async def show(events: AsyncIterator[Event], console: Console) -> Answer:
    """Draw the graph on `console`, write the answer to stdout as it comes, return the answer.

    The picture stands still once the answer begins: by then every node has ended.
    """
    view = GraphView()
    live = Live(view, console=console, refresh_per_second=_REFRESH_PER_S, transient=False)
    is_live = console.is_terminal
    if is_live:
        live.start()
    has_text = False
    answer: Answer | None = None
    try:
        async for event in events:
            view.apply(event)
            if not is_live and (line := describe(event)):
                console.print(Text(line), soft_wrap=True)
            if isinstance(event, AnswerDelta):
                live.stop()
                if not has_text:
                    console.print()
                print(printable(event.text), end="", flush=True)
                has_text = True
            elif isinstance(event, AnswerFinished):
                answer = event.answer
                if answer.text and not has_text:
                    live.stop()
                    print(printable(answer.text), end="")
                    has_text = True
    finally:
        live.stop()
        if has_text:
            print(flush=True)
    assert answer is not None, "every stream ends with AnswerFinished"
    return answer
