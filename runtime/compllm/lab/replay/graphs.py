"""A file of query graphs: JSON lines of {"id", "question", "steps": [...], "parents": [[...]]}, the
parents counted from 0. The first step of a replay.

Strangers' files: every line passes the same checks as a plan file, and a bad one is named by file
and line before anything runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compllm.errors import ConfigError, PlanError
from compllm.plan import PlanLimits, is_encodable, make_plan, parse_plan, plan_depth
from compllm.prompts import one_line
from compllm.types import Plan, SubQuery

_MAX_NAMED = 5  # bad lines that an error names
_SHAPE = '{"id": ..., "question": "...", "steps": ["..."], "parents": [[]]}'


@dataclass(frozen=True, slots=True)
class ReplayGraph:
    """One question with the plan that was written for it."""

    id: str
    question: str
    plan: Plan

    @property
    def depth(self) -> int:
        """Nodes on the longest path."""
        return plan_depth(self.plan.sub_queries)

    @property
    def width(self) -> int:
        """Nodes of the widest level."""
        depths = node_depths(self.plan)
        return max(list(depths.values()).count(depth) for depth in depths.values())


def node_depths(plan: Plan) -> dict[int, int]:
    """Nodes on the longest path that ends at each node, by id."""
    depths: dict[int, int] = {}
    for sub_query in plan.sub_queries:
        depths[sub_query.id] = 1 + max((depths[parent] for parent in sub_query.parents), default=0)
    return depths


def read_graphs(path: Path, limits: PlanLimits, limit: int | None = None) -> list[ReplayGraph]:
    """The first `limit` graphs of a file. Raises ConfigError that names the bad lines."""
    graphs: list[ReplayGraph] = []
    bad: list[str] = []
    seen: set[str] = set()
    for number, line in _lines(path):
        if limit is not None and len(graphs) >= limit:
            break
        try:
            graph = _graph(line, number, limits)
            if graph.id in seen:
                raise PlanError(f"has the id {graph.id!r} of an earlier line")
        except PlanError as error:
            bad.append(f"line {number} {error}")
            continue
        seen.add(graph.id)
        graphs.append(graph)
    if bad:
        more = f" (and {len(bad) - _MAX_NAMED} more)" if len(bad) > _MAX_NAMED else ""
        raise ConfigError(f"{path}: {'; '.join(bad[:_MAX_NAMED])}{more}")
    if not graphs:
        raise ConfigError(f"{path} has no graphs: expected lines of {_SHAPE}")
    return graphs


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Those that are not blank, with their numbers from 1."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _graph(line: bytes, number: int, limits: PlanLimits) -> ReplayGraph:
    """Raises PlanError with the rest of a sentence."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise PlanError(f"is not JSON ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("steps"), list):
        raise PlanError(f"is no graph: expected {_SHAPE}")
    question = record.get("question")
    if not isinstance(question, str) or not question.strip() or not is_encodable(question):
        raise PlanError(f"has no question: expected {_SHAPE}")
    graph_id = record.get("id", number)
    if not isinstance(graph_id, str | int) or isinstance(graph_id, bool):
        raise PlanError(f"has the id {graph_id!r}: a text or an integer is expected")
    if not is_encodable(str(graph_id)):
        raise PlanError(f"has the id {graph_id!r}, which holds half a surrogate pair")
    return ReplayGraph(str(graph_id), question.strip(), _plan(record, limits))


def _plan(record: dict[str, Any], limits: PlanLimits) -> Plan:
    """The plan as a generator can write it: one line a step, none empty, no line twice."""
    steps = [
        # Break has a step of no words; what is replayed is the graph, and the node is part of it.
        one_line(step) or f"step {number}" if isinstance(step, str) else step
        for number, step in enumerate(record["steps"], start=1)
    ]
    try:
        plan = parse_plan(json.dumps({**record, "steps": steps}), limits)
        return make_plan(_distinct(plan), limits)
    except PlanError as error:
        raise PlanError(f"has a bad plan: {error}") from None


def _distinct(plan: Plan) -> list[SubQuery]:
    """A line said again ends a generator's plan; people ask the same of different parents."""
    said = {sub_query.text for sub_query in plan.sub_queries}  # no number makes one of these
    times: Counter[str] = Counter()
    found = []
    for sub_query in plan.sub_queries:
        text = sub_query.text
        times[text] += 1
        if times[text] > 1:
            while (numbered := f"{text} ({times[text]})") in said:
                times[text] += 1
            text = numbered
        said.add(text)
        found.append(SubQuery(sub_query.id, text, sub_query.parents))
    return found
