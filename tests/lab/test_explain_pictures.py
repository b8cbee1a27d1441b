"""The trace and the chart of a run."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any
from xml.etree import ElementTree

import pytest
from explain_data import JOIN, records
from hypothesis import given, settings

from compllm.lab.explain import explain_run, run_of
from compllm.lab.explain.gantt import draw_gantt
from compllm.lab.explain.perfetto import trace_of

Event = dict[str, Any]


def trace(record: dict[str, Any]) -> list[Event]:
    value = json.loads(json.dumps(trace_of(explain_run(run_of(record))), allow_nan=False))
    assert set(value) == {"displayTimeUnit", "traceEvents"}
    events: list[Event] = value["traceEvents"]
    return events


def slices_by_thread(events: list[Event]) -> dict[int, list[Event]]:
    found: dict[int, list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            found[event["tid"]].append(event)
    return found


@given(records())
def test_every_event_has_what_the_format_asks_for(record: dict[str, Any]) -> None:
    for event in trace(record):
        assert event["ph"] in ("X", "M", "s", "f")
        assert isinstance(event["name"], str)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        if event["ph"] != "M":
            assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0


@given(records())
def test_slices_of_a_thread_nest(record: dict[str, Any]) -> None:
    for slices in slices_by_thread(trace(record)).values():
        # Outer first, as a viewer sorts them; then each lies within what is still open.
        open_ends: list[int] = []
        for event in sorted(slices, key=lambda event: (event["ts"], -event["dur"])):
            start, end = event["ts"], event["ts"] + event["dur"]
            while open_ends and open_ends[-1] <= start:
                open_ends.pop()
            assert not open_ends or end <= open_ends[-1]
            open_ends.append(end)


@given(records())
def test_arrows_begin_and_end_at_slices(record: dict[str, Any]) -> None:
    events = trace(record)
    slices = slices_by_thread(events)
    arrows: dict[str, set[str]] = defaultdict(set)
    for event in events:
        if event["ph"] in ("s", "f"):
            arrows[event["id"]].add(event["ph"])
            outer = slices[event["tid"]][0]
            assert outer["ts"] <= event["ts"] <= outer["ts"] + outer["dur"]
    assert all(ends == {"s", "f"} for ends in arrows.values())
    assert len(arrows) == sum(len(node["parents"]) for node in record["nodes"])


def test_the_critical_path_is_a_thread_of_its_own() -> None:
    events = trace(JOIN)
    path, *_ = slices_by_thread(events).values()
    assert [event["name"] for event in path] == [
        "query", "plan plan", "route plan", "queue 2", "prefill 2", "decode 2",
        "host 3", "queue 3", "prefill 3", "decode 3", "compose answer",
    ]  # fmt: skip
    assert sum(event["dur"] for event in path[1:]) == path[0]["dur"] == 490_000
    names = [event["args"]["name"] for event in events if event["name"] == "thread_name"]
    assert names[:3] == ["critical path", "planner", "answer"]
    assert names[3] == "1 chemistry What is a?"


def test_the_chart_is_a_png_or_an_svg() -> None:
    report = explain_run(run_of(JOIN))
    assert draw_gantt(report).startswith(b"\x89PNG\r\n")
    picture = draw_gantt(report, "svg")
    assert ElementTree.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert draw_gantt(report, "svg") == picture


@settings(max_examples=3, deadline=None)
@given(records())
@pytest.mark.filterwarnings("error")
def test_any_run_can_be_drawn(record: dict[str, Any]) -> None:
    record["query"] = record["nodes"][0]["text"] = "$x^ \\frac{"
    assert draw_gantt(explain_run(run_of(record)), "svg")
