"""A graph that ran -> its line of the output, and the summary of all lines. Pure; the last step.

Times are milliseconds. Of a record:

    total_ms          from the query's start to its end
    sequential_ms     the same with one request after another: measured where that was the policy,
                      else estimated from what requests of this size take alone on this engine
                      (`sequential_is` says which)
    ideal_ms          the engine-aware bound: `ideal.py` on the engine's measured steps
    reached_of_bound  ideal_ms / total_ms: 1 is all that this engine allows this graph
    *ttft_of_total    the answer's first token over the whole: of the run, and of the bound (ideal)
    *_speedup         sequential over: the bound (ideal), total_ms (reached); structural is nodes
                      over depth, which no engine can pass
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from compllm.lab.engine_profile import EngineProfile
from compllm.lab.replay.drive import Ran, ReplaySettings
from compllm.lab.replay.ideal import Load, ideal, sequential_ms, structural_speedup
from compllm.trace import answer_to_dict
from compllm.types import ANSWER_NODE, PLAN_NODE, Answer, Usage

Record = dict[str, Any]
_SPREAD = ("total_ms", "ttft_ms", "handover_ms", "slow_down")  # of interest beside their mean
_MEANS = (
    "sequential_ms",
    "ideal_ms",
    "reached_of_bound",
    "reached_of_structural",
    "ideal_speedup",
    "reached_speedup",
    "structural_speedup",
    "ttft_of_total",
    "ideal_ttft_of_total",
)


def make_record(ran: Ran, settings: ReplaySettings, profile: EngineProfile | None) -> Record:
    """The line of one graph; without a bound where it failed or the engine was not measured."""
    graph, answer = ran.graph, ran.answer
    record: Record = {
        "id": graph.id,
        "question": graph.question,
        "policy": settings.policy,
        "num_nodes": len(graph.plan.sub_queries),
        "depth": graph.depth,
        "arrival_ms": _ms(ran.start_s - ran.late_s),
        "late_ms": _ms(ran.late_s),
    }
    if answer is None:
        return record | {"error": ran.error, "nodes": []}
    timings = answer.timings
    record |= {
        "total_ms": _ms(timings.total_s),
        "ttft_ms": _ms(timings.first_token_s),
        "ttft_of_total": round(timings.first_token_s / timings.total_s, 4),
        "stage_ms": _ms(timings.execute_s),
        "route_ms": _ms(timings.route_s),
    }
    if settings.is_planned:
        record |= {"plan_ms": _ms(timings.plan_s), "compose_ms": _ms(timings.compose_s)}
    if ran.error is not None:
        record["error"] = ran.error
    elif profile is not None:
        record |= _bounds(answer, loads_of(ran, profile.tokens_per_block), settings, profile)
    record["num_plan_tokens"] = ran.work.num_plan_tokens
    record["num_answer_tokens"] = (answer.usage.answer or Usage()).num_output_tokens
    record["handover_ms"] = [round(each, 3) for each in _recorded_latencies_ms(answer, settings)]
    record["nodes"] = answer_to_dict(answer)["nodes"]
    return record


def loads_of(ran: Ran, tokens_per_block: int) -> dict[int, Load]:
    """What the requests of a graph that went well were for the engine, as it reported them."""
    answer, work = ran.answer, ran.work
    assert answer is not None

    def load(usage: Usage, parents: Sequence[int] = (), num_plan_tokens: int = 0) -> Load:
        reused = usage.kv_reused_blocks * tokens_per_block
        return Load(
            max(1, usage.num_input_tokens - reused),
            max(1, usage.num_output_tokens),
            tuple(parents),
            num_plan_tokens,
        )

    loads: dict[int, Load] = {}
    if answer.usage.plan is not None:
        # Chunk by chunk, as its lines are.
        of_plan = replace(answer.usage.plan, num_output_tokens=work.num_plan_tokens)
        loads[PLAN_NODE] = load(of_plan)
    lines = work.line_tokens or [0] * len(answer.nodes)
    for sub_query, node, at_tokens in zip(
        answer.plan.sub_queries, answer.nodes, lines, strict=True
    ):
        loads[node.id] = load(node.usage, sub_query.parents, at_tokens)
    if answer.usage.answer is not None:
        inner = {parent for each in loads.values() for parent in each.parents}
        loads[ANSWER_NODE] = load(answer.usage.answer, sorted(loads.keys() - inner))
    return loads


def dispatch_latencies_ms(answer: Answer) -> list[float]:
    """From the last parent's end to the child's start, of each node below others."""
    ends = {node.id: node.end_s for node in answer.nodes}
    return [
        1e3 * (node.start_s - max(ends[parent] for parent in sub_query.parents))
        for sub_query, node in zip(answer.plan.sub_queries, answer.nodes, strict=True)
        if sub_query.parents and node.status == "done"
    ]


def _recorded_latencies_ms(answer: Answer, settings: ReplaySettings) -> list[float]:
    """Where nodes run while the plan is written, a child's line may end after its parents did:
    counted from when the runtime had both. Polling does not report that time."""
    if not settings.is_planned or settings.policy in ("sequential", "levels"):
        return dispatch_latencies_ms(answer)
    if settings.policy == "polling":
        return []
    nodes = zip(answer.plan.sub_queries, answer.nodes, strict=True)
    return [
        1e3 * (node.start_s - node.ready_s)
        for sub_query, node in nodes
        if sub_query.parents and node.status == "done"
    ]


def _bounds(
    answer: Answer, loads: Mapping[int, Load], settings: ReplaySettings, profile: EngineProfile
) -> Record:
    total_ms = 1e3 * answer.timings.total_s
    allowed, alone_ms = ideal(loads, profile), sequential_ms(loads.values(), profile)
    allowed_ms = allowed.total_ms
    is_alone = settings.concurrency == 1 and settings.rate_qps is None
    is_measured = settings.policy == "sequential" and is_alone
    host_ms = profile.host.to_engine_ms + profile.host.from_engine_ms
    estimate_ms = alone_ms + len(loads) * host_ms + 1e3 * answer.timings.route_s
    one_by_one_ms = total_ms if is_measured else estimate_ms
    reached, structural = one_by_one_ms / total_ms, structural_speedup(loads)
    return {
        "sequential_ms": round(one_by_one_ms, 3),
        "sequential_is": "measured" if is_measured else "estimated",
        "ideal_ms": round(allowed_ms, 3),
        "reached_of_bound": round(allowed_ms / total_ms, 4),
        "ideal_speedup": round(alone_ms / allowed_ms, 4),
        "ideal_ttft_of_total": round(allowed.ttft_of_total, 4),
        "reached_speedup": round(reached, 4),
        "structural_speedup": round(structural, 4),
        # The structural bound is of the nodes alone.
        **(
            {} if settings.is_planned else {"reached_of_structural": round(reached / structural, 4)}
        ),
        # Under load: how much longer than it would take alone at best.
        "slow_down": round(total_ms / allowed_ms, 4),
    }


def summarise(
    records: Sequence[Record],
    settings: ReplaySettings,
    *,
    num_graphs: int,
    wall_s: float,
    profile: EngineProfile | None,
    counters: Mapping[str, Any],
) -> Record:
    """The last line's object. num_graphs: those that were to run."""
    well = [record for record in records if "error" not in record]
    spreads = {key: _spread(_values(well, key)) for key in _SPREAD}
    means = {key: _mean(_values(well, key)) for key in _MEANS}
    return {
        "num_graphs": len(records),
        "num_failed": len(records) - len(well),
        "is_complete": len(records) == num_graphs,
        **asdict(settings),
        "wall_ms": _ms(wall_s),
        "throughput_qps": round(len(well) / wall_s, 4) if wall_s else None,
        **spreads,
        **{f"mean_{key}": value for key, value in means.items()},
        "min_reached_of_bound": min(_values(well, "reached_of_bound"), default=None),
        "num_tokens": sum(node["num_output_tokens"] for record in well for node in record["nodes"]),
        "engine_profile": None if profile is None else asdict(profile),
        **counters,
    }


def _values(records: Iterable[Record], key: str) -> list[float]:
    """Of all records that have it; a list in a record counts as its values."""
    found: list[float] = []
    for record in records:
        value = record.get(key)
        found += value if isinstance(value, list) else [] if value is None else [value]
    return found


def _mean(values: Sequence[float]) -> float | None:
    return round(sum(values) / len(values), 4) if values else None


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and percentiles: the smallest value that this percentage of all do not exceed."""
    ordered = sorted(values)
    ranks = {
        f"p{percent}": ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
        if ordered
        else None
        for percent in (50, 95, 99)
    }
    return {"mean": _mean(ordered), **ranks, "max": ordered[-1] if ordered else None}


def _ms(seconds: float) -> float:
    return round(1e3 * seconds, 3)
