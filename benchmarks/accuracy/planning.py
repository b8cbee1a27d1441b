"""Questions through the path's first step alone, and the plans that came back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from benchmarks.accuracy.contestants import outcome_of
from benchmarks.accuracy.lab import Lab
from benchmarks.accuracy.records import PlanItem
from benchmarks.accuracy.runner import Outcome
from compllm.assembly import make_generator
from compllm.decompose import decompose
from compllm.types import Plan, Query, SubQuery


def planner(lab: Lab) -> Callable[[PlanItem], Awaitable[Outcome]]:
    generator = make_generator(lab.catalogue, lab.config)

    async def answer(item: PlanItem) -> Outcome:
        plan = Plan(())
        async for line in decompose(Query(item.question, id=item.id), lab.backend, generator):
            plan = line if isinstance(line, Plan) else plan
        return {**outcome_of("", plan, ()), "reason": plan.reason}

    return answer


def plan_of_outcome(outcome: Outcome) -> Plan:
    lines = enumerate(zip(outcome["steps"], outcome["parents"], strict=True), start=1)
    sub_queries = [SubQuery(i, text, tuple(p + 1 for p in above)) for i, (text, above) in lines]
    return Plan(tuple(sub_queries), outcome["is_fallback"], outcome["reason"])
