"""What a soak run has seen, how its answers compare with those given alone, and its tables."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.load import soak_faults
from benchmarks.load.soak_clients import Answer, Outcome, Question
from benchmarks.load.soak_faults import Fault, Sample, memory
from benchmarks.load.soak_hostile import endings
from benchmarks.report import Report, percentiles

_MOST_SHOWN = 40  # differences in the result file
_VERDICTS = ("right", "near tie", "fallback", "wrong", "lost")


@dataclass(slots=True)
class Seen:
    """What one run has seen."""

    outcomes: list[Outcome] = field(default_factory=list)
    hostile: list[tuple[str, str]] = field(default_factory=list)
    num_leavers: int = 0
    samples: list[Sample] = field(default_factory=list)
    injected: list[Fault] = field(default_factory=list)
    again: list[Answer] = field(default_factory=list)  # of the pool, alone, afterwards


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an answer compares with the one alone. gap: see `Answer.gap`."""

    kind: str  # one of _VERDICTS
    gap: float | None = None


def judge(oracle: Answer, answer: Answer | None, tie: float) -> Verdict:
    if answer is None:
        return Verdict("lost")
    if answer.is_same(oracle):
        return Verdict("right")
    if answer.fallback and not oracle.fallback:
        return Verdict("fallback")
    gap = answer.gap(oracle)
    return Verdict("near tie" if gap is not None and gap <= tie else "wrong", gap)


def report_queries(
    report: Report,
    pool: Sequence[Question],
    oracle: Sequence[Answer],
    outcomes: Sequence[Outcome],
    tie: float,
) -> Counter[str]:
    """The tables of queries, of retries and of differences; how often each verdict fell."""
    verdicts = [judge(oracle[each.question], each.answer, tie) for each in outcomes]
    for kind in dict.fromkeys(question.kind for question in pool):
        ours = [
            (outcome, verdict)
            for outcome, verdict in zip(outcomes, verdicts, strict=True)
            if pool[outcome.question].kind == kind
        ]
        counts = Counter(verdict.kind for _, verdict in ours)
        times = [outcome.latency_s for outcome, verdict in ours if verdict.kind != "lost"]
        quiet = [o.latency_s for o, v in ours if v.kind != "lost" and not o.retries]
        report.add(
            "queries",
            kind="engine, own adapter id" if kind == "engine" else f"comp_llm, {kind}",
            queries=len(ours),
            **_verdict_cells(counts),
            tried_again=sum(bool(outcome.retries) for outcome, _ in ours),
            **{f"{key}_s": value for key, value in (percentiles(times) if times else {}).items()},
            p99_of_one_attempt_s=percentiles(quiet)["p99"] if quiet else None,
        )
    retries = sum((outcome.retries for outcome in outcomes), Counter[str]())
    for reason, count in retries.most_common():
        report.add("attempts that had to be repeated", reason=reason, attempts=count)
    differences = Counter[tuple[str, str]]()
    gaps: dict[tuple[str, str], float | None] = {}
    for outcome, verdict in zip(outcomes, verdicts, strict=True):
        if verdict.kind == "right":
            continue
        question = pool[outcome.question]
        where = outcome.error
        if outcome.answer is not None:
            where = outcome.answer.parting(oracle[outcome.question])
            where = outcome.answer.fallback if verdict.kind == "fallback" else where
        key = (f"{verdict.kind}: {question}", where)
        differences[key] += 1
        gaps[key] = verdict.gap
    for (what, where), count in differences.most_common(_MOST_SHOWN):
        gap = gaps[what, where]
        report.add("differences", question=what, parts_at=where, times=count, gap_nats=gap)
    return Counter(verdict.kind for verdict in verdicts)


def _verdict_cells(counts: Counter[str]) -> dict[str, int]:
    return {kind.replace(" ", "_"): counts[kind] for kind in _VERDICTS}


def report_faults(report: Report, seen: Seen) -> list[float]:
    """The table of faults; seconds from each kill to the end of the next right answer that was
    begun after it."""
    recoveries = []
    for fault in seen.injected:
        later = [
            outcome.end_s - fault.at_s
            for outcome in seen.outcomes
            if outcome.answer is not None and outcome.begin_s >= fault.at_s
        ]
        recovery_s = min(later, default=None)
        report.add(
            "faults",
            at_s=fault.at_s,
            fault=fault.kind,
            target=fault.target,
            paused_s=fault.seconds,
            next_answer_after_s=recovery_s,
        )
        if recovery_s is not None and fault.seconds is None:
            recoveries.append(recovery_s)
    return recoveries


def report_all(
    report: Report,
    options: argparse.Namespace,
    pool: Sequence[Question],
    oracle: Sequence[Answer],
    seen: Seen,
) -> None:
    counts = report_queries(report, pool, oracle, seen.outcomes, options.tie)
    recoveries = report_faults(report, seen)
    for kind, ended in endings(seen.hostile).items():
        names = ("refused", "answered", "away", "silent")
        report.add("hostile requests", kind=kind, **{name: ended[name] for name in names})
    used = memory(seen.samples, options.seconds)
    for kind, cells in used.items():
        report.add("memory", process=kind, **cells)
    again = [judge(one, two, options.tie) for one, two in zip(oracle, seen.again, strict=True)]
    tritons = {each.pid for each in seen.samples if each.kind == soak_faults.TRITON}
    report.summary |= {
        "queries": len(seen.outcomes),
        **_verdict_cells(counts),
        "wrong_alone_afterwards": sum(each.kind == "wrong" for each in again),
        "kills": sum(fault.seconds is None for fault in seen.injected),
        "pauses": sum(fault.seconds is not None for fault in seen.injected),
        "restarts_seen": len(tritons) - 1,
        "worst_recovery_s": max(recoveries, default=None),
        "hostile_requests": len(seen.hostile),
        "hostile_without_an_end": sum(ending == "silent" for _, ending in seen.hostile),
        "clients_that_left": seen.num_leavers,
        "slopes_mib_per_min": {kind: cells["slope_mib_per_min"] for kind, cells in used.items()},
    }
