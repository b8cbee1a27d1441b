"""A plan as a picture (PNG), for `compllm plan --format png`. Needs matplotlib: compllm[plot]."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping

from compllm import extras
from compllm.errors import ConfigError
from compllm.graph import QueryGraph

_LINE_CHARS = 28  # characters of a label's line
_CELL_INCHES = (2.9, 1.5)  # room of a node


def draw_png(graph: QueryGraph, experts: Mapping[int, str] | None = None) -> bytes:
    """The graph with parents above their children, a colour for each expert.

    Raises ConfigError where matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError(f"drawing needs matplotlib: {extras.hint(error)} ({error})") from error
    levels = graph.levels
    width = max(len(level) for level in levels)
    place = {
        node: ((column + 0.5) * width / len(level), -row)
        for row, level in enumerate(levels)
        for column, node in enumerate(level)
    }
    figure = Figure(figsize=(width * _CELL_INCHES[0], len(levels) * _CELL_INCHES[1]))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(-len(levels) + 0.5, 0.5)
    names = sorted(set((experts or {}).values()))
    boxes = {}
    for node, (x, y) in place.items():
        expert = experts[node] if experts else ""
        head = f"{node} · {expert}" if expert else str(node)
        # A dollar sign would start a formula.
        text = textwrap.fill(graph[node].text.replace("$", r"\$"), _LINE_CHARS)
        colour = f"C{names.index(expert) % 10}" if expert else "C7"
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": colour}
        label = axes.text(x, y, f"{head}\n{text}", ha="center", va="center", fontsize=9, bbox=box)
        boxes[node] = label.get_bbox_patch()
    for node in place:
        for child in graph.children(node):
            ends = {"patchA": boxes[node], "patchB": boxes[child]}  # from box to box, not centre
            arrow = {"arrowstyle": "->", "color": "0.5", **ends}
            axes.annotate("", xy=place[child], xytext=place[node], arrowprops=arrow)
    picture = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(picture, format="png")
    return picture.getvalue()
