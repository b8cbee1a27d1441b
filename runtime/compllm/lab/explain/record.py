"""What was measured of one query: the JSON of `ask --json` or a line of `replay` -> Run.

A file is input from outside: every number is checked, and what is damaged is a ConfigError of one
line that names the place. Times are milliseconds from the start of the query.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

import networkx as nx

from compllm.errors import ConfigError

TOLERANCE_MS = 0.05  # what rounding may turn around; more is damage
_MAX_NODES = 10_000
_MAX_CHARS = 4_000_000  # of one record over several lines
_MAX_MS = 1e12  # thirty years: sums of larger numbers lose the microseconds
_NO_RECORD = (
    "no record of a query: expected the output of 'compllm ask --json' or of 'compllm replay'"
)
_RECORDED = ("sequential_ms", "ideal_ms", "reached_of_bound", "num_nodes", "depth")


@dataclass(frozen=True, slots=True)
class NodeRun:
    """One node's times, in order: ready <= start <= scheduled <= first token <= end."""

    id: int
    parents: tuple[int, ...]
    ready_ms: float  # the last parent ended, or the line of the plan was complete
    start_ms: float  # handed to the engine
    scheduled_ms: float  # taken up by the engine; start_ms where it was not recorded
    first_token_ms: float
    end_ms: float
    text: str = ""
    expert: str = ""
    status: str = "done"
    num_output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """One query. Nodes stand parents first."""

    title: str  # the question, or the record's id
    nodes: tuple[NodeRun, ...]
    total_ms: float
    plan_ms: float = 0.0  # the plan was complete; 0: there was no plan
    route_ms: float = 0.0  # summed time of embedding and routing
    first_token_ms: float = 0.0  # of the answer; 0: not recorded
    has_compose: bool = False  # what follows the last node is the answer's making
    recorded: tuple[tuple[str, float], ...] = ()  # bounds that the record brought along

    @property
    def nodes_end_ms(self) -> float:
        return max(node.end_ms for node in self.nodes)


def read_run(lines: Iterable[str], origin: str, id: str | None = None) -> Run:
    """The run in a file's lines, which keep their ends: one JSON object over all of them, or one a
    line with `id` to name one of several. Of many records no more than one is kept.

    Raises ConfigError.
    """
    try:
        return run_of(_chosen(_records(lines), id))
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from error


def run_of(record: Mapping[str, Any]) -> Run:
    """The run that a record describes. Raises ConfigError."""
    if isinstance(record.get("answer"), Mapping):  # of benchmarks/path/run_questions.py
        record = record["answer"]
    times = record.get("timings", {})
    if not isinstance(times, Mapping):
        raise ConfigError(f"'timings' is {_seen(times)}, expected an object")
    times = {**record, **times}
    if record.get("error") and not record.get("nodes"):
        raise ConfigError(f"the query failed, there is nothing to explain: {record['error']}")
    nodes = _nodes(record.get("nodes"))
    total_ms = _ms(times, "total_ms", "the record")
    end_ms = max(node.end_ms for node in nodes)
    if end_ms > total_ms + TOLERANCE_MS:
        raise ConfigError(f"a node ends at {end_ms:g} ms, after the total of {total_ms:g} ms")
    total_ms = max(total_ms, end_ms)
    plan_ms, route_ms = (
        min(_ms(times, key, "the record", 0.0), total_ms) for key in ("plan_ms", "route_ms")
    )
    first_key = "first_token_ms" if "first_token_ms" in times else "ttft_ms"
    first_token_ms = min(_ms(times, first_key, "the record", 0.0), total_ms)
    return Run(
        str(record.get("query") or record.get("question") or record.get("id") or ""),
        nodes,
        total_ms,
        plan_ms,
        route_ms,
        first_token_ms,
        "compose_ms" in times or first_token_ms > max(end_ms, plan_ms),
        tuple((key, float(record[key])) for key in _RECORDED if _is_number(record.get(key))),
    )


def _records(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """At least one; a summary is no record."""
    num_found = 0
    for value in _values(lines):
        if isinstance(value, dict) and "summary" in value:
            continue
        if not isinstance(value, dict):
            raise ConfigError(_NO_RECORD)
        num_found += 1
        yield value
    if num_found == 0:
        raise ConfigError(_NO_RECORD)


def _values(lines: Iterable[str]) -> Iterator[Any]:
    """Of each line, or of all lines together where the first is no JSON by itself."""
    numbered = ((number, line) for number, line in enumerate(lines, 1) if line.strip())
    for num_read, (number, line) in enumerate(numbered):
        try:
            value = _value(line)
        except ValueError as error:
            if num_read > 0:
                raise ConfigError(f"not JSON: line {number}: {error}") from error
            value = _whole(line, (more for _, more in numbered))
        yield value


def _whole(first: str, rest: Iterable[str]) -> Any:
    text = [first]
    num_chars = len(first)
    for line in rest:
        num_chars += len(line)
        if num_chars > _MAX_CHARS:
            raise ConfigError(
                f"the first line is no record, and all of them are no record of at most "
                f"{_MAX_CHARS} characters"
            )
        text.append(line)
    try:
        return _value("".join(text))
    except ValueError as error:
        raise ConfigError(f"not JSON: {error}") from error


def _value(text: str) -> Any:
    """Raises ValueError, or ConfigError."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ConfigError("not a record: it is nested too deeply") from error


def _chosen(records: Iterable[Mapping[str, Any]], id: str | None) -> Mapping[str, Any]:
    """All are read, so that damage behind the record is reported too."""
    found: Mapping[str, Any] | None = None
    num_records = 0
    for record in records:
        num_records += 1
        if found is None and id in (None, str(record.get("id"))):
            found = record
    if found is None:
        raise ConfigError(f"no record with the id {id!r} among {num_records}")
    if id is None and num_records > 1:
        raise ConfigError(
            f"{num_records} records: name one with --id, for instance {found.get('id')!r}"
        )
    return found


def _nodes(value: Any) -> tuple[NodeRun, ...]:
    if not isinstance(value, list) or not value:
        raise ConfigError(f"'nodes' is {_seen(value)}, expected a list of at least one")
    if len(value) > _MAX_NODES:
        raise ConfigError(f"{len(value)} nodes, at most {_MAX_NODES} can be explained")
    graph: nx.DiGraph[int] = nx.DiGraph()
    given: dict[int, Mapping[str, Any]] = {}
    for place, node in enumerate(value):
        id = node.get("id") if isinstance(node, dict) else None
        if not _is_id(id):
            raise ConfigError(f"nodes[{place}] has the id {_seen(id)}, expected an integer")
        if id in given:
            raise ConfigError(f"two nodes have the id {id}")
        given[id] = node
    for id, node in given.items():
        parents = node.get("parents", [])
        if not isinstance(parents, list) or not all(_is_id(parent) for parent in parents):
            raise ConfigError(f"node {id} has the parents {_seen(parents)}, expected a list of ids")
        strangers = [parent for parent in parents if parent not in given]
        if strangers:
            raise ConfigError(f"node {id} has the parent {strangers[0]}, which is not there")
        graph.add_node(id)
        graph.add_edges_from((parent, id) for parent in parents)
    try:
        order = list(nx.lexicographical_topological_sort(graph))
    except nx.NetworkXUnfeasible:
        cycle = " -> ".join(str(tail) for tail, _ in nx.find_cycle(graph))
        raise ConfigError(f"the nodes' parents form a cycle: {cycle}") from None
    done: dict[int, NodeRun] = {}
    for id in order:
        done[id] = _node(id, given[id], done)
    return tuple(done.values())


def _node(id: int, record: Mapping[str, Any], done: Mapping[int, NodeRun]) -> NodeRun:
    parents = tuple(dict.fromkeys(record.get("parents", ())))
    name = f"node {id}"
    since_ms = max((done[parent].end_ms for parent in parents), default=0.0)
    since = "its last parent's end" if parents else "the query's start"
    times: dict[str, float] = {}
    for key in ("ready_ms", "start_ms", "scheduled_ms", "first_token_ms", "end_ms"):
        at_ms = _ms(record, key, name, since_ms if key == "scheduled_ms" else None)
        if at_ms < since_ms - TOLERANCE_MS:
            raise ConfigError(
                f"{name} has {key} = {at_ms:g}, before {since} at {since_ms:g}: the times are "
                "not of one run"
            )
        since_ms, since = max(at_ms, since_ms), key
        times[key] = since_ms
    num_tokens = record.get("num_output_tokens", 0)
    if not _is_id(num_tokens) or num_tokens < 0:
        raise ConfigError(f"{name} has num_output_tokens = {_seen(num_tokens)}, expected a count")
    return NodeRun(
        id,
        parents,
        times["ready_ms"],
        times["start_ms"],
        times["scheduled_ms"],
        times["first_token_ms"],
        times["end_ms"],
        str(record.get("text", record.get("step", ""))),
        str(record.get("expert", "")),
        str(record.get("status", "done")),
        num_tokens,
    )


def _ms(record: Mapping[str, Any], key: str, name: str, default: float | None = None) -> float:
    value = record.get(key, default)
    if value is None and default is not None:
        value = default
    if not _is_number(value) or not 0 <= value <= _MAX_MS:
        raise ConfigError(f"{name} has {key} = {_seen(value)}, expected milliseconds from 0")
    return float(value)


def _is_number(value: Any) -> TypeGuard[int | float]:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= _MAX_MS and math.isfinite(value)


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53


def _seen(value: Any) -> str:
    """A value for an error's line: short, whatever it is."""
    shown = "missing" if value is None else repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."
