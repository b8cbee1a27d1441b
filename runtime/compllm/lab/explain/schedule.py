"""What each step of a query waited for: the critical path, slack, and what-if.

The critical path method (Kelley and Walker 1959) on measured times. A node's gate is the moment it
could begin: its last parent's end, or the arrival of its line where the planner was the last. The
answer's gate is the end of the last node or of the plan. What lies between a gate and the end of
what it opens is divided by kind, so that along the critical path the kinds sum to the total.

Two things are not recorded and are taken from the order of events: a node that became ready later
than a moment after its parents, while the planner still wrote, waited for its line; and routing
costs each line the same, or, where all lines came at once (a plan that was given, a fall-back),
all of it stood before the first node.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from compllm.lab.explain.record import NodeRun, Run

Category = Literal["plan", "route", "queue", "prefill", "decode", "compose", "host"]
CATEGORIES: tuple[Category, ...] = get_args(Category)
PLAN: Final = "plan"
ANSWER: Final = "answer"

Shares = Mapping[Category, float]  # milliseconds
Owner = int | Literal["plan", "answer"]  # a node, or what stands before or behind them

# A parent's end starts its child within the event loop's turn, a token takes longer: more means
# that the line was not there yet. The planner's own end comes a turn after its last line.
_TURN_MS = 1.0
_PLANNER = -(1 << 60)  # its end among the nodes', below any id


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the critical path."""

    category: Category
    owner: Owner
    start_ms: float
    end_ms: float

    @property
    def ms(self) -> float:
        return self.end_ms - self.start_ms


@dataclass(frozen=True, slots=True)
class _Step:
    """A node as the schedule sees it."""

    node: NodeRun
    arrival_ms: float  # its line was there and routed, at the latest
    gate_ms: float
    is_line_last: bool  # it waited for its line, not for a parent

    @property
    def spans(self) -> tuple[tuple[Category, float], ...]:
        """From its gate on: (kind, end)."""
        node = self.node
        return (
            ("host", node.ready_ms),
            ("queue", node.scheduled_ms),
            ("prefill", node.first_token_ms),
            ("decode", node.end_ms),
        )


class Schedule:
    """The steps of one run and what they waited for."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._route_ms = _route_share(run)
        self._steps = {step.node.id: step for step in _steps(run)}
        # When the last thing that a node waited for was there.
        self.gates_ms = {id: step.gate_ms for id, step in self._steps.items()}
        self.answer_gate_ms = max(run.nodes_end_ms, run.plan_ms)
        self.slack_ms = self._slack()
        self.critical = self._critical()
        self.segments = self._segments()

    def node_shares(self, id: int) -> Shares:
        """Where a node's own time went, from its gate to its end."""
        step = self._steps[id]
        return _durations(step.gate_ms, step.spans)

    def total_without(
        self, categories: Collection[Category], only: Collection[Owner] | None = None
    ) -> float:
        """The total if these kinds took no time, everything else as measured; `only`: at these
        steps. Lines whose arrival is not known are taken to come as late as they may have."""

        def is_kept(category: Category, owner: Owner) -> bool:
            return category not in categories or (only is not None and owner not in only)

        ends: dict[int, float] = {}
        for id, step in self._steps.items():
            # The planner is one: what makes a line of the path free makes all lines free.
            line_ms = 0.0
            for category, start_ms, end_ms in self._arrival(step.arrival_ms):
                line_ms += end_ms - start_ms if is_kept(category, PLAN) else 0.0
            gate_ms = max([line_ms, *(ends[parent] for parent in step.node.parents)])
            spent = _durations(step.gate_ms, step.spans)
            ends[id] = gate_ms + sum(ms for kind, ms in spent.items() if is_kept(kind, id))
        if is_kept("plan", PLAN):
            ends[_PLANNER] = self.run.plan_ms
        rest_ms = self.run.total_ms - self.answer_gate_ms
        return max(ends.values()) + (rest_ms if is_kept(self._tail, ANSWER) else 0.0)

    @property
    def path(self) -> tuple[Owner, ...]:
        """The critical path's steps, in the order of time."""
        return tuple(dict.fromkeys(segment.owner for segment in self.segments))

    @property
    def _tail(self) -> Category:
        return "compose" if self.run.has_compose else "host"

    def _slack(self) -> dict[int, float]:
        """How much later each node could have ended without the total growing."""
        slack: dict[int, float] = {}
        latest = {id: [self.answer_gate_ms - step.node.end_ms] for id, step in self._steps.items()}
        for id in reversed(self._steps):
            step = self._steps[id]
            slack[id] = min(latest[id])
            for parent in step.node.parents:
                spare_ms = step.gate_ms - self._steps[parent].node.end_ms
                latest[parent].append(spare_ms + slack[id])
        return slack

    def _critical(self) -> tuple[int, ...]:
        """The nodes of one critical path, first to last; of several the one of smaller ids. Empty
        when the plan's end was the last thing that the answer waited for."""
        path: list[int] = []
        wanted_ms, choices = self.answer_gate_ms, sorted(self._steps)
        while tight := [id for id in choices if self._steps[id].node.end_ms == wanted_ms]:
            step = self._steps[tight[0]]
            path.append(tight[0])
            wanted_ms = step.gate_ms
            choices = [] if step.is_line_last else sorted(step.node.parents)
        return tuple(reversed(path))

    def _segments(self) -> tuple[Segment, ...]:
        """The critical path as stretches that cover the whole time, one after another."""
        first_ms = self.gates_ms[self.critical[0]] if self.critical else self.run.plan_ms
        found = [Segment(PLAN, PLAN, 0.0, first_ms)]
        if self.critical:
            found = [Segment(kind, PLAN, *ends) for kind, *ends in self._arrival(first_ms)]
        for id in self.critical:
            since_ms = self.gates_ms[id]
            for category, end_ms in self._steps[id].spans:
                found.append(Segment(category, id, since_ms, end_ms))
                since_ms = end_ms
        found.append(Segment(self._tail, ANSWER, self.answer_gate_ms, self.run.total_ms))
        return tuple(segment for segment in found if segment.end_ms > segment.start_ms)

    def _arrival(self, at_ms: float) -> list[tuple[Category, float, float]]:
        """The time before a line was there: writing it, then routing it."""
        written_ms = max(0.0, at_ms - self._route_ms)
        writer: Category = "plan" if self.run.plan_ms else "host"
        return [(writer, 0.0, written_ms), ("route", written_ms, at_ms)]


def _durations(since_ms: float, spans: tuple[tuple[Category, float], ...]) -> dict[Category, float]:
    spent: dict[Category, float] = {}
    for category, end_ms in spans:
        spent[category] = end_ms - since_ms
        since_ms = end_ms
    return spent


def _steps(run: Run) -> list[_Step]:
    ends = {node.id: node.end_ms for node in run.nodes}
    found: dict[int, _Step] = {}
    for node in run.nodes:
        parents_ms = max((ends[parent] for parent in node.parents), default=None)
        is_line_last = parents_ms is None or (
            node.ready_ms - parents_ms > _TURN_MS and node.ready_ms <= run.plan_ms + _TURN_MS
        )
        gate_ms = node.ready_ms if parents_ms is None or is_line_last else parents_ms
        found[node.id] = _Step(node, gate_ms, gate_ms, is_line_last)
    # Lines come in the order of the ids: no later than the next one that is known. Without a
    # planner all were there with the first.
    known_ms = run.plan_ms or min(node.ready_ms for node in run.nodes)
    for id in sorted(found, reverse=True):
        step = found[id]
        known_ms = min(known_ms, step.gate_ms) if step.is_line_last else known_ms
        if not step.is_line_last:
            arrival_ms = min(step.gate_ms, known_ms)
            found[id] = _Step(step.node, arrival_ms, step.gate_ms, False)
    return list(found.values())


def _route_share(run: Run) -> float:
    """What routing cost a line on its way."""
    first_ms = min(node.ready_ms for node in run.nodes)
    is_at_once = run.plan_ms - first_ms <= _TURN_MS
    return run.route_ms if is_at_once else run.route_ms / len(run.nodes)
