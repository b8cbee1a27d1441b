"""bench_replay.py's tables and picture: speed-ups, bounds, moments of each set, part and policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.intervals import mean
from benchmarks.report import Report, Row, percentiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes


POLICIES = ("sequential", "levels", "polling", "dataflow")


PARTS = {"stage": "none", "whole": "plan+compose"}  # and the replay's --overhead


SPEEDUPS = "speed-up over sequential, a graph by a graph"


BOUNDS = "what the graph and the engine allow, and what was reached"


MOMENTS = "first token, handover"


NOISE = 0.97  # a graph that is slower than this by the clock was not unlucky


Record = dict[str, Any]


def tabulate(report: Report, records: Sequence[Record]) -> None:
    """A row for each set, part and policy."""
    well = [record for record in records if "error" not in record]
    report.summary["num_failed"] = len(records) - len(well)
    alone = {
        (record["set"], record["part"], record["id"]): record["total_ms"]
        for record in well
        if record["policy"] == "sequential"
    }
    for name in dict.fromkeys(record["set"] for record in records):
        for part in PARTS:
            for policy in POLICIES:
                mine = [
                    record | {"speedup": alone[key] / record["total_ms"]}
                    for record in well
                    if (record["set"], record["part"], record["policy"]) == (name, part, policy)
                    and (key := (name, part, record["id"])) in alone
                ]
                if mine:
                    add_rows(report, {"set": name, "part": part, "policy": policy}, mine)


def add_rows(report: Report, head: Row, records: Sequence[Record]) -> None:
    def values(key: str) -> list[float]:
        return [record[key] for record in records if key in record]

    totals, speedups = values("total_ms"), values("speedup")
    speedup = mean(speedups)
    report.add(
        SPEEDUPS,
        **head,
        graphs=len(records),
        mean_ms=average(totals),
        **{f"{key}_ms": value for key, value in percentiles(totals).items()},
        speedup=round(speedup.value, 4),
        low=round(speedup.low, 4),
        high=round(speedup.high, 4),
        p50=percentiles(speedups)["p50"],
        worst=min(speedups),
        slower=sum(each < NOISE for each in speedups),
    )
    reached = mean(values("reached_of_bound"))
    # By ratios of this run's own times: a step that was slower all day cancels out.
    by_ratio = mean([each["speedup"] / each["ideal_speedup"] for each in records])
    structural = mean([each["speedup"] / each["structural_speedup"] for each in records])
    is_stage = head["part"] == "stage"
    report.add(
        BOUNDS,
        **head,
        structural_speedup=average(values("structural_speedup")),
        ideal_speedup=average(values("ideal_speedup")),
        gpu_like_speedup=average(values("gpu_like_speedup")),
        ideal_ms=average(values("ideal_ms")),
        reached_of_bound=round(reached.value, 4),
        low=round(reached.low, 4),
        high=round(reached.high, 4),
        worst=min(values("reached_of_bound")),
        reached_by_ratio=round(by_ratio.value, 4),
        reached_of_structural=round(structural.value, 4) if is_stage else None,
    )
    handovers = [ms for record in records for ms in record["handover_ms"]]
    report.add(
        MOMENTS,
        **head,
        ttft_mean_ms=average(values("ttft_ms")),
        ttft_of_total=average(values("ttft_of_total")),
        ideal_ttft_of_total=average(values("ideal_ttft_of_total")),
        gpu_like_ttft_of_total=average(values("gpu_like_ttft_of_total")),
        children=len(handovers),
        **{
            f"handover_{key}_ms": value
            for key, value in (percentiles(handovers) if handovers else {}).items()
        },
    )


def average(values: Sequence[float]) -> float | None:
    return round(math.fsum(values) / len(values), 4) if values else None


def plot(axes: Axes, tables: Mapping[str, list[Row]]) -> None:
    """Speed-ups as bars with their intervals; the bound of each as a line across."""
    rows, bounds = tables[SPEEDUPS], tables[BOUNDS]
    groups = list(dict.fromkeys((row["set"], row["part"]) for row in rows))
    policies = [policy for policy in POLICIES if policy != "sequential"]
    width = 0.8 / len(policies)
    for number, policy in enumerate(policies):
        mine = {(r["set"], r["part"]): r for r in rows if r["policy"] == policy}
        places = [groups.index(group) + (number - 1) * width for group in mine]
        values: list[Any] = [row["speedup"] for row in mine.values()]
        errors = [
            [row["speedup"] - row["low"] for row in mine.values()],  # type: ignore[operator]
            [row["high"] - row["speedup"] for row in mine.values()],  # type: ignore[operator]
        ]
        axes.bar(places, values, width, yerr=errors, capsize=3, label=policy)
    for row in bounds:
        if row["policy"] == "dataflow":
            place = groups.index((row["set"], row["part"]))
            axes.hlines(row["ideal_speedup"], place - 0.45, place + 0.45, "black", "dashed")
    axes.axhline(1.0, color="grey", linewidth=0.8)
    axes.set_xticks(range(len(groups)), [f"{name}\n{part}" for name, part in groups])
    axes.set_ylabel("speed-up over sequential")
    axes.set_title("mean over graphs, 95 % intervals; dashed: the engine-aware bound")
    axes.legend(loc="upper left")
