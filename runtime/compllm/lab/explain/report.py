"""Run -> Report: the critical path, slack, shares, the bound, and what would help most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from compllm.lab.explain.record import Run
from compllm.lab.explain.schedule import (
    ANSWER,
    CATEGORIES,
    PLAN,
    Category,
    Schedule,
    Segment,
    Shares,
)
from compllm.printable import printable

_WAITING: tuple[Category, ...] = ("queue", "host")  # no work is done in them
_KINDS: tuple[Category, ...] = ("host", "queue", "prefill", "decode")  # of a node's time
_LEAST_TEXT = 16  # characters of a sub-query: where fewer are left, the nodes are no table
_GAP = 2  # between two columns
_ANY_WIDTH = 10_000  # to measure a table that nothing narrows


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What it would bring if one kind of time took none."""

    category: Category
    total_ms: float  # if it took none on the critical path: another path may bind then
    everywhere_ms: float  # the total if it took none at all

    def saved_ms(self, run: Run) -> float:
        return run.total_ms - self.total_ms


@dataclass(frozen=True, slots=True)
class Report:
    """What a run's record says. Milliseconds; the shares and the segments sum to the total."""

    run: Run
    segments: tuple[Segment, ...]  # the critical path, one after another
    critical: tuple[int, ...]  # its nodes
    slack_ms: dict[int, float]  # of each node; 0 where it is on a critical path
    node_shares: dict[int, Shares]
    shares: Shares
    what_ifs: tuple[WhatIf, ...]  # what would help most first
    sequential_ms: float  # sum of the nodes' times
    longest_path_ms: float  # over the graph, of the nodes' times: the expert stage's ideal
    expert_stage_ms: float  # first node's start to last node's end
    no_waiting_ms: float  # the total if nothing waited in a queue or for the host

    @property
    def ideal_speedup(self) -> float:
        return _ratio(self.sequential_ms, self.longest_path_ms)

    @property
    def reached_speedup(self) -> float:
        return _ratio(self.sequential_ms, self.expert_stage_ms)

    def to_dict(self) -> dict[str, Any]:
        """Ready for `json.dumps`."""
        run = self.run
        return {
            "query": run.title,
            "total_ms": _round(run.total_ms),
            "critical_path": [
                {
                    "category": segment.category,
                    "step": segment.owner,
                    "start_ms": _round(segment.start_ms),
                    "end_ms": _round(segment.end_ms),
                }
                for segment in self.segments
            ],
            "critical_nodes": list(self.critical),
            "where_ms": {name: _round(self.shares[name]) for name in CATEGORIES},
            "bound": {
                "sequential_ms": _round(self.sequential_ms),
                "longest_path_ms": _round(self.longest_path_ms),
                "expert_stage_ms": _round(self.expert_stage_ms),
                "ideal_speedup": round(self.ideal_speedup, 4),
                "reached_speedup": round(self.reached_speedup, 4),
                "reached_of_ideal": round(_ratio(self.reached_speedup, self.ideal_speedup), 4),
                "no_waiting_ms": _round(self.no_waiting_ms),
            },
            **({"recorded": dict(run.recorded)} if run.recorded else {}),
            "what_if": [
                {
                    "category": what_if.category,
                    "saved_ms": _round(what_if.saved_ms(run)),
                    "total_ms": _round(what_if.total_ms),
                    "everywhere_total_ms": _round(what_if.everywhere_ms),
                }
                for what_if in self.what_ifs
            ],
            "nodes": [
                {
                    "id": node.id,
                    "parents": list(node.parents),
                    "expert": node.expert,
                    "status": node.status,
                    "slack_ms": _round(self.slack_ms[node.id]),
                    "is_critical": self.slack_ms[node.id] == 0,
                    "where_ms": {
                        name: _round(ms) for name, ms in self.node_shares[node.id].items()
                    },
                }
                for node in run.nodes
            ],
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def fits(table: Table, num_more: int = 0) -> bool:
            wide = options.update(width=_ANY_WIDTH)
            return console.measure(table, options=wide).maximum + num_more <= options.max_width

        yield from self._head()
        shares = self._shares_table()
        shares.collapse_padding = not fits(shares)
        yield shares
        if fits(self._nodes_table(has_texts=False), _GAP + _LEAST_TEXT):
            yield self._nodes_table(has_texts=True)
        else:
            yield from self._node_lines()
        yield Text("* critical: no slack", style="dim italic")

    def _head(self) -> Iterator[Text]:
        run = self.run
        yield Text(printable(run.title), style="bold")
        yield Text(self._path_line())
        yield Text(
            f"expert stage: {self.sequential_ms:.1f} ms of work in {self.expert_stage_ms:.1f} ms "
            "with the wait for the plan's lines; its longest path takes "
            f"{self.longest_path_ms:.1f}"
        )
        yield Text(
            f"whole query: {run.total_ms:.1f} ms, {self.no_waiting_ms:.1f} if nothing had waited"
        )

    def _path_line(self) -> str:
        names = {PLAN: "plan", ANSWER: "answer"}
        owners = dict.fromkeys(segment.owner for segment in self.segments)
        return "critical path: " + " -> ".join(names.get(str(o), str(o)) for o in owners)

    def _shares_table(self) -> Table:
        table = _table("time", "ms", "share", "without\nit ms", "saves\nms")
        by_category = {what_if.category: what_if for what_if in self.what_ifs}
        for name in (what_if.category for what_if in self.what_ifs):
            what_if = by_category[name]
            table.add_row(
                name,
                f"{self.shares[name]:.1f}",
                f"{_ratio(self.shares[name], self.run.total_ms, 0.0):.1%}",
                f"{what_if.total_ms:.1f}",
                f"{what_if.saved_ms(self.run):.1f}",
            )
        return table

    def _nodes_table(self, *, has_texts: bool) -> Table:
        table = _table("node", *(f"{kind}\nms" for kind in _KINDS), "slack\nms")
        table.add_column("expert", no_wrap=True)
        if has_texts:
            table.add_column("sub-query", max_width=60)  # the one that rich may narrow
        for node in self.run.nodes:
            shares = self.node_shares[node.id]
            text = Text(printable(node.text), no_wrap=True, overflow="ellipsis")
            table.add_row(
                self._mark(node.id),
                *(f"{shares[kind]:.1f}" for kind in _KINDS),
                f"{self.slack_ms[node.id]:.1f}",
                Text(printable(node.expert)),
                *([text] if has_texts else []),
                style=self._style(node.id),
            )
        return table

    def _node_lines(self) -> Iterator[Padding | Text]:
        """The same for a terminal that is too narrow for the table: nothing is shortened."""
        for node in self.run.nodes:
            shares = self.node_shares[node.id]
            times = ", ".join(f"{kind} {shares[kind]:.1f}" for kind in _KINDS)
            style = self._style(node.id)
            yield Text(printable(f"{self._mark(node.id)} {node.expert}: {node.text}"), style=style)
            yield _indented(Text(f"{times}, slack {self.slack_ms[node.id]:.1f} ms", style=style))

    def _mark(self, node_id: int) -> str:
        return f"{'*' if self.slack_ms[node_id] == 0 else ''}{node_id}"

    def _style(self, node_id: int) -> str:
        return "bold" if self.slack_ms[node_id] == 0 else ""


def explain_run(run: Run) -> Report:
    """What a run's record says of its time."""
    schedule = Schedule(run)
    shares: dict[Category, float] = dict.fromkeys(CATEGORIES, 0.0)
    for segment in schedule.segments:
        shares[segment.category] += segment.ms
    what_ifs = [
        WhatIf(
            name,
            min(run.total_ms, schedule.total_without({name}, schedule.path)),
            min(run.total_ms, schedule.total_without({name})),
        )
        for name in CATEGORIES
    ]
    # Of equal gains the larger share first: what shortens two paths alike helps neither alone.
    what_ifs.sort(key=lambda found: (found.total_ms, -shares[found.category]))
    spent = {node.id: node.end_ms - node.start_ms for node in run.nodes}
    longest: dict[int, float] = {}
    for node in run.nodes:
        before_ms = max((longest[parent] for parent in node.parents), default=0.0)
        longest[node.id] = before_ms + spent[node.id]
    begun = [node.start_ms for node in run.nodes if node.end_ms > node.start_ms]
    return Report(
        run,
        schedule.segments,
        schedule.critical,
        schedule.slack_ms,
        {node.id: schedule.node_shares(node.id) for node in run.nodes},
        shares,
        tuple(what_ifs),
        sum(spent.values()),
        max(longest.values()),
        run.nodes_end_ms - min(begun) if begun else 0.0,
        min(run.total_ms, schedule.total_without(_WAITING)),
    )


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 1))
    table.add_column(first, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _indented(text: Text) -> Padding:
    return Padding(text, (0, 0, 0, 3))


def _ratio(part: float, whole: float, other: float = 1.0) -> float:
    return part / whole if whole > 0 else other


def _round(ms: float) -> float:
    return round(ms, 3)
