"""Plots: risk over coverage of each router, and right choices over the number of experts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from benchmarks.report import Row
from compllm.build_scripts.routing.thresholds import Curve


def plot_scale(path: Path, rows: list[Row]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(row["router"] for row in rows):
        mine = [row for row in rows if row["router"] == name]
        x = [float(row["experts"] or 0) for row in mine]
        y = [float(row["choice_%"] or 0) for row in mine]
        low = [float(row["choice_low"] or 0) for row in mine]
        high = [float(row["choice_high"] or 0) for row in mine]
        (line,) = axes.plot(x, y, marker="o", label=str(name))
        axes.fill_between(x, low, high, alpha=0.12, color=line.get_color())
    axes.set_xscale("log", base=2)
    axes.set_xticks([3, 4, 8, 16, 32], ["3", "4", "8", "16", "32"])
    axes.set_xlabel("experts")
    axes.set_ylabel("right expert, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def plot_risk(path: Path, curves: Mapping[str, Curve]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot(100 * curve.coverage, 100 * curve.risk, label=name)
    axes.set_xlabel("in-domain questions that reach an expert, %")
    axes.set_ylabel("wrong among the routed, %")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
