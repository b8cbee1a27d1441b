"""What bench_ablation switches off, one at a time, and the queries it asks meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from compllm.lab.replay.drive import ReplaySettings
    from compllm.lab.replay.graphs import ReplayGraph
    from compllm.lab.replay.policies import PolicyName
    from compllm.scheduling.admission import PolicyName as AdmissionPolicy

Part = Literal["alone", "load", "gate"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One setting of all the switches; the defaults are those of the runtime."""

    name: str
    is_plan_streamed: bool = True  # a node starts when its line ends, not when the plan does
    policy: PolicyName = "dataflow"  # levels and sequential wait for the whole plan, too
    admission: AdmissionPolicy = "oldest_query_first"
    is_shared: bool = True  # single-flight
    gate: Literal["off", "auto"] = "off"  # only part `gate` has questions that need no plan

    def overrides(self) -> Mapping[str, object]:
        """Of the configuration; the other switches are the replay's."""
        return {"sharing.is_on": self.is_shared}

    def replayed(self, settings: ReplaySettings) -> ReplaySettings:
        return replace(settings, policy=self.policy, is_plan_streamed=self.is_plan_streamed)


ALL_ON = Variant("all on")
_WHOLE_PLAN = replace(ALL_ON, name="whole plan first", is_plan_streamed=False)
_LEVELS = replace(ALL_ON, name="levels", policy="levels")
VARIANTS: Mapping[Part, tuple[Variant, ...]] = {
    # One query at a time: no request waits for admission or is shared.
    "alone": (
        ALL_ON,
        _WHOLE_PLAN,
        _LEVELS,
        replace(ALL_ON, name="sequential", policy="sequential"),
    ),
    "load": (
        ALL_ON,
        _WHOLE_PLAN,
        _LEVELS,
        replace(ALL_ON, name="first come, first served", admission="fifo"),
        replace(ALL_ON, name="no single-flight", is_shared=False),
        Variant("all off", False, "sequential", "fifo", is_shared=False),
    ),
    "gate": (replace(ALL_ON, gate="auto"), replace(ALL_ON, name="no gate")),
}


def salt_of(part: Part, variant: Variant, round_number: int) -> str:
    """Two letters that no other run of the bench has: no run finds another's prefix cached."""
    before = sum(len(VARIANTS[each]) for each in list(VARIANTS)[: list(VARIANTS).index(part)])
    number = before + VARIANTS[part].index(variant)
    return f"{chr(ord('A') + number)} {chr(ord('A') + round_number)}"


def neighbours(graphs: Sequence[ReplayGraph], count: int) -> list[ReplayGraph]:
    """`count` queries, of which every second one has the first sub-queries (those without parents)
    in common with the one before it, and nothing else."""
    return [_marked(graphs[number // 2 % len(graphs)], number) for number in range(count)]


def _marked(graph: ReplayGraph, number: int) -> ReplayGraph:
    from compllm.types import Plan

    own, pair = f"Of {number + 10}:", f"Of {number // 2 + 10}:"
    plan = Plan(
        tuple(
            replace(each, text=f"{own if each.parents else pair} {each.text}")
            for each in graph.plan.sub_queries
        )
    )
    return replace(graph, id=f"{graph.id} {number}", question=f"{own} {graph.question}", plan=plan)


def one_step(questions: Sequence[str]) -> list[ReplayGraph]:
    """Questions that need no plan: the plan is the question."""
    from compllm.lab.replay.graphs import ReplayGraph
    from compllm.types import Plan, SubQuery

    return [ReplayGraph(each, each, Plan((SubQuery(1, each),))) for each in questions]
