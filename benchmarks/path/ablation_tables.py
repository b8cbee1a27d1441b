"""What bench_ablation reports of its records: tables, whether all did the same work, a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.intervals import mean
from benchmarks.path.ablation_variants import ALL_ON, VARIANTS
from benchmarks.report import Report, Row, percentiles

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RATIOS = "time without each overlap over the time with all"
BOUNDS = "what graph and engine allow, and what was reached"

Record = dict[str, Any]


def add_tables(report: Report, records: Sequence[Record]) -> None:
    """A row for each part and variant; in the summary whether the work was the same."""
    well = [record for record in records if "error" not in record]
    report.summary["num_failed"] = len(records) - len(well)
    report.summary["is_equal_work"] = len(records) == len(well) and is_equal_work(records)
    for part in dict.fromkeys(record["part"] for record in well):
        of_part = bounded([record for record in well if record["part"] == part])
        for variant in dict.fromkeys(record["variant"] for record in of_part):
            add_rows(report, part, variant, of_part)


def bounded(records: Sequence[Record]) -> list[Record]:
    """Give a query the same bound under every variant: that of the run that found the fewest
    prefixes in the cache. What the gate lets past has a bound of its own."""
    most: dict[tuple[Any, ...], float] = {}
    for each in records:
        most[_key(each)] = max(most.get(_key(each), 0.0), each["ideal_ms"])
    return [
        each
        | {
            "ideal_ms": most[_key(each)],
            "reached_of_bound": most[_key(each)] / each["total_ms"],
        }
        for each in records
    ]


def _key(record: Record) -> tuple[Any, ...]:
    return record["round"], record["id"], record["is_direct"]


def is_equal_work(records: Sequence[Record]) -> bool:
    """Whether every variant ran every query, with as many tokens of plan, nodes and answer. What
    the gate lets past has no plan."""
    work: dict[tuple[Any, ...], list[tuple[Any, ...]]] = {}
    for each in records:
        plan = None if each["part"] == "gate" else each.get("num_plan_tokens")
        tokens = (plan, tuple(each["node_tokens"]), each.get("num_answer_tokens"))
        work.setdefault((each["part"], each["round"], each["id"]), []).append(tokens)
    num_variants = {
        part: len({each["variant"] for each in records if each["part"] == part})
        for part, _, _ in work
    }
    return all(
        len(found) == num_variants[part] and len(set(found)) == 1
        for (part, _, _), found in work.items()
    )


def add_rows(report: Report, part: str, variant: str, records: Sequence[Record]) -> None:
    own = [record for record in records if record["variant"] == variant]
    base = [record for record in records if record["variant"] == ALL_ON.name]
    found = ratios(own, base, by_round=part == "load")
    ratio = mean(found) if found else None
    latencies = [record["latency_ms"] for record in own]
    report.add(
        RATIOS,
        part=part,
        variant=variant,
        queries=len(own),
        mean_ms=round(statistics.fmean(latencies), 1),
        **{f"{key}_ms": round(ms, 1) for key, ms in percentiles(latencies).items() if key != "p99"},
        first_token_p50_ms=round(statistics.median(each["ttft_ms"] for each in own), 1),
        ratio=round(ratio.value, 4) if ratio else None,
        low=round(ratio.low, 4) if ratio else None,
        high=round(ratio.high, 4) if ratio else None,
        reused_blocks=sum(each["reused_blocks"] for each in own),
        prompt_tokens=round(statistics.fmean(each["prompt_tokens"] for each in own), 1),
        shared_nodes=sum(each["num_shared"] for each in own),
        straight=sum(each["is_direct"] for each in own),
    )
    report.add(
        BOUNDS,
        part=part,
        variant=variant,
        structural_speedup=_mean(own, "structural_speedup"),
        engine_speedup=_mean(own, "ideal_speedup"),
        bound_ms=_mean(own, "ideal_ms"),
        reached_of_bound=_mean(own, "reached_of_bound"),
    )


def ratios(own: Sequence[Record], base: Sequence[Record], *, by_round: bool) -> list[float]:
    """Of each query to the same query of the same round, or of each round's means: queries that
    run at the same time are no samples of their own."""

    def means(records: Sequence[Record]) -> dict[tuple[Any, ...], float]:
        groups: dict[tuple[Any, ...], list[float]] = {}
        for each in records:
            key = (each["round"],) if by_round else (each["round"], each["id"])
            groups.setdefault(key, []).append(each["latency_ms"])
        return {key: statistics.fmean(values) for key, values in groups.items()}

    ours, theirs = means(own), means(base)
    return [ours[key] / theirs[key] for key in ours if key in theirs]


def _mean(records: Sequence[Record], key: str) -> float | None:
    values = [record[key] for record in records if key in record]
    return round(statistics.fmean(values), 4) if values else None


def plot(axes: Axes, tables: Mapping[str, list[Row]]) -> None:
    """A bar for each part and variant; the first of a part is the one it is compared with."""
    rows = [row for row in tables[RATIOS] if row["variant"] != ALL_ON.name and row["ratio"]]
    values: list[Any] = [row["ratio"] for row in rows]
    errors = [
        [row["ratio"] - row["low"] for row in rows],  # type: ignore[operator]
        [row["high"] - row["ratio"] for row in rows],  # type: ignore[operator]
    ]
    colors = dict(zip(VARIANTS, ("tab:blue", "tab:orange", "tab:green"), strict=True))
    axes.barh(
        range(len(rows)),
        values,
        xerr=errors,
        capsize=3,
        color=[colors[row["part"]] for row in rows],  # type: ignore[index]
    )
    axes.set_yticks(range(len(rows)), [f"{row['part']}: {row['variant']}" for row in rows])
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlabel("time over the time with all overlaps on, 95 % intervals")
