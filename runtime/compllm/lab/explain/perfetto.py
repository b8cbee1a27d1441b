"""Report -> a trace that https://ui.perfetto.dev and chrome://tracing open.

Trace Event Format, JSON object form: complete events (`ph` X) with times in microseconds, which
must nest on their thread; metadata events (M) name the threads; flow events (s, f) draw the arrows
from a parent to its child. The first thread holds the critical path, the next the planner and the
answer, then each node has its own: nodes that overlap would not nest on one.
"""

from __future__ import annotations

from typing import Any

from compllm.lab.explain.record import NodeRun
from compllm.lab.explain.report import Report
from compllm.lab.explain.schedule import CATEGORIES

_PID = 1
_PATH, _PLANNER, _ANSWER, _FIRST_NODE = 1, 2, 3, 10  # thread ids
_LABEL_CHARS = 60

Event = dict[str, Any]


def trace_of(report: Report) -> dict[str, Any]:
    """The trace, ready for `json.dumps`."""
    run = report.run
    gate_ms = max(run.nodes_end_ms, run.plan_ms)
    threads = {node.id: _FIRST_NODE + place for place, node in enumerate(run.nodes)}
    events = [_meta("process_name", _PATH, _label(run.title) or "query")]
    events += _thread(_PATH, "critical path")
    events.append(_slice("query", "query", 0.0, run.total_ms, _PATH, _facts(report)))
    for segment in report.segments:
        name = f"{segment.category} {segment.owner}".strip()
        events.append(_slice(name, segment.category, segment.start_ms, segment.end_ms, _PATH))
    if run.plan_ms:
        events += _thread(_PLANNER, "planner")
        events.append(_slice("plan", "plan", 0.0, run.plan_ms, _PLANNER))
    if run.has_compose:
        events += _thread(_ANSWER, "answer")
        events.append(_slice("compose", "compose", gate_ms, run.total_ms, _ANSWER))
        if gate_ms < run.first_token_ms:
            name = "to first token"
            events.append(_slice(name, "compose", gate_ms, run.first_token_ms, _ANSWER))
    for node in run.nodes:
        events += _node(report, node, threads[node.id])
    for node in run.nodes:
        for parent in node.parents:
            events += _arrow(report, parent, node, threads)
    return {"displayTimeUnit": "ms", "traceEvents": events}


def _node(report: Report, node: NodeRun, thread: int) -> list[Event]:
    facts = {
        "sub-query": node.text,
        "expert": node.expert,
        "status": node.status,
        "slack_ms": round(report.slack_ms[node.id], 3),
        "is_critical": report.slack_ms[node.id] == 0,
        "num_output_tokens": node.num_output_tokens,
    }
    label = " ".join(filter(None, (str(node.id), node.expert, _label(node.text))))
    inner = (
        ("queue", node.ready_ms, node.scheduled_ms),
        ("prefill", node.scheduled_ms, node.first_token_ms),
        ("decode", node.first_token_ms, node.end_ms),
    )
    return [
        *_thread(thread, label),
        _slice(f"node {node.id}", "node", node.ready_ms, node.end_ms, thread, facts),
        *(_slice(name, name, start, end, thread) for name, start, end in inner if end > start),
    ]


def _arrow(report: Report, parent: int, child: NodeRun, threads: dict[int, int]) -> list[Event]:
    """From within the parent's slice, whose end is not part of it, to the start of the child's."""
    source = next(node for node in report.run.nodes if node.id == parent)
    start = max(_us(source.ready_ms), _us(source.end_ms) - 1)
    common = {"name": "parent", "cat": "parent", "pid": _PID, "id": f"{parent}-{child.id}"}
    return [
        {**common, "ph": "s", "ts": start, "tid": threads[parent]},
        {**common, "ph": "f", "bp": "e", "ts": _us(child.ready_ms), "tid": threads[child.id]},
    ]


def _slice(
    name: str, kind: str, start_ms: float, end_ms: float, thread: int, facts: Event | None = None
) -> Event:
    # Both ends rounded, not the length: slices that touch must go on touching.
    start, end = _us(start_ms), _us(end_ms)
    event = {"name": name, "cat": kind, "ph": "X", "ts": start, "dur": end - start}
    return {**event, "pid": _PID, "tid": thread, **({"args": facts} if facts else {})}


def _thread(thread: int, name: str) -> list[Event]:
    order: Event = {"sort_index": thread}
    return [
        _meta("thread_name", thread, name),
        {"name": "thread_sort_index", "ph": "M", "pid": _PID, "tid": thread, "args": order},
    ]


def _meta(kind: str, thread: int, name: str) -> Event:
    return {"name": kind, "ph": "M", "pid": _PID, "tid": thread, "args": {"name": name}}


def _facts(report: Report) -> Event:
    return {f"{name}_ms": round(report.shares[name], 3) for name in CATEGORIES}


def _label(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LABEL_CHARS else text[: _LABEL_CHARS - 3] + "..."


def _us(ms: float) -> int:
    return round(ms * 1000)
