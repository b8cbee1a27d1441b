"""Report -> a Gantt chart as PNG or SVG. Needs matplotlib: compllm[plot]."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING, Literal

from compllm import extras
from compllm.errors import ConfigError
from compllm.lab.explain.report import Report
from compllm.lab.explain.schedule import CATEGORIES, Category

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Format = Literal["png", "svg"]

_COLOURS: dict[Category, str] = {
    "plan": "tab:purple",
    "route": "tab:pink",
    "queue": "tab:gray",
    "prefill": "tab:orange",
    "decode": "tab:blue",
    "compose": "tab:green",
    "host": "tab:red",
}
_LABEL_CHARS = 34
_ROW_INCHES = 0.36
_MAX_INCHES = 300.0  # a picture of thousands of nodes still fits a canvas


def draw_gantt(report: Report, format: Format = "png") -> bytes:
    """A row for the planner, each node and the answer; the critical path's rows are bold and joined
    by the line through its steps. Raises ConfigError where matplotlib is not installed."""
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ConfigError(f"drawing needs matplotlib: {extras.hint(error)} ({error})") from error
    rows = _rows(report)
    height = min(_MAX_INCHES, 1.6 + _ROW_INCHES * len(rows))
    figure = Figure(figsize=(10, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for place, (_, _, bars) in enumerate(rows):
        for category, start_ms, end_ms in bars:
            axes.barh(place, end_ms - start_ms, left=start_ms, color=_COLOURS[category], height=0.7)
    _draw_path(axes, report, {owner: place for place, (owner, _, _) in enumerate(rows)})
    axes.set_yticks(range(len(rows)), [label for _, label, _ in rows], fontsize=8)
    for tick, (owner, _, _) in zip(axes.get_yticklabels(), rows, strict=True):
        if owner in {str(segment.owner) for segment in report.segments}:
            tick.set_fontweight("bold")
    axes.invert_yaxis()
    axes.set_xlim(0, report.run.total_ms or 1)
    axes.set_xlabel("milliseconds from the query's start")
    axes.set_title(
        f"{report.run.total_ms:.0f} ms; experts: {report.sequential_ms:.0f} ms of work in "
        f"{report.expert_stage_ms:.0f}; black: the critical path",
        fontsize=9,
    )
    axes.grid(axis="x", alpha=0.3)
    handles = [Patch(color=_COLOURS[name], label=name) for name in CATEGORIES]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    picture = io.BytesIO()
    # Neither the day nor random ids: the same run gives the same bytes.
    with rc_context({"svg.hashsalt": "compllm"}):
        metadata = {"Date": None} if format == "svg" else None
        figure.savefig(picture, format=format, dpi=110, metadata=metadata)
    return picture.getvalue()


def _rows(report: Report) -> list[tuple[str, str, list[tuple[Category, float, float]]]]:
    """(owner, label, bars) from top to bottom."""
    run = report.run
    rows: list[tuple[str, str, list[tuple[Category, float, float]]]] = []
    if run.plan_ms or any(segment.owner == "plan" for segment in report.segments):
        before = [segment for segment in report.segments if segment.owner == "plan"]
        bars = [(segment.category, segment.start_ms, segment.end_ms) for segment in before]
        # The planner first, so that what of it is on the critical path lies above.
        rows.append(("plan", "plan", [("plan", 0.0, run.plan_ms), *bars]))
    for node in run.nodes:
        text = textwrap.shorten(node.text, _LABEL_CHARS, placeholder="...")
        # A dollar sign would start a formula.
        label = f"{node.id} {text}".strip().replace("$", r"\$")
        bars = [
            ("queue", node.ready_ms, node.scheduled_ms),
            ("prefill", node.scheduled_ms, node.first_token_ms),
            ("decode", node.first_token_ms, node.end_ms),
        ]
        rows.append((str(node.id), label, bars))
    if run.has_compose:
        gate_ms = max(run.nodes_end_ms, run.plan_ms)
        rows.append(("answer", "answer", [("compose", gate_ms, run.total_ms)]))
    return rows


def _draw_path(axes: Axes, report: Report, places: dict[str, int]) -> None:
    points = [
        (at_ms, places[str(segment.owner)])
        for segment in report.segments
        if str(segment.owner) in places
        for at_ms in (segment.start_ms, segment.end_ms)
    ]
    axes.plot([x for x, _ in points], [y for _, y in points], color="black", linewidth=1.2)
