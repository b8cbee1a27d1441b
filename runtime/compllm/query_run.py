"""What is known of one query while the path runs, and the Answer that becomes of it at the end.

Filled by `CompLLM.stream` (pipeline.py) step by step; an answer that was cut short is made of what
there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from compllm.compose import join, joined_end
from compllm.confidence import Verdict
from compllm.errors import BackendError, CompllmError
from compllm.execute import Execution, LiveQuery
from compllm.types import (
    Answer,
    AnswerDelta,
    FinishReason,
    NodeResult,
    Plan,
    PlanFinished,
    Query,
    Timings,
)


@dataclass(slots=True)
class Run:
    """What is known of one query so far, and how it becomes an Answer."""

    query: Query
    live: LiveQuery
    execution: Execution
    plan: Plan | None = None  # finished
    proposed: Plan | None = None  # the generator's, until it is known that an expert owns a part
    verdict: Verdict | None = None  # None: cut short before it
    error: CompllmError | None = None
    answer_end: FinishReason | None = None  # None: no model wrote the answer
    plan_s: float = 0.0
    route_s: float = 0.0
    first_token_s: float = 0.0
    texts: list[str] = field(default_factory=list)

    def finish_plan(self, plan: Plan) -> None:
        """The plan is whole. Of a direct one the node answers the query: it is drawn as asked."""
        if plan.is_direct:
            self.execution.draw_as(self.query.sampling)
        self.plan, self.plan_s = plan, self.live.elapsed_s()
        self.live.emit(PlanFinished(plan))

    def answer_ended(self, reason: FinishReason) -> None:
        self.answer_end = reason

    def say(self, text: str) -> None:
        if not self.texts:
            text = text.lstrip()
            self.first_token_s = self.live.elapsed_s()
        if text:
            self.texts.append(text)
            self.live.emit(AnswerDelta(text))

    def finish(self) -> Answer:
        """The answer, or what there is of it. Raises the query's error when there is nothing to
        return."""
        execution = self.execution
        error = self.error or execution.first_error
        if not self.texts:
            # No aggregator, but whatever was found out: the leaves, else the nodes above them.
            known = execution.answered()
            self.say(join(execution.leaves()) or join(known, is_whole=False))
        if not self.texts:
            raise error or BackendError("no sub-query has a response", query_id=self.query.id)
        nodes = execution.results()
        sub_queries = tuple(execution.graph)
        # Cut short while planning, the plan is what there was of it.
        plan = self.plan or Plan(sub_queries)
        is_partial = error is not None or any(node.status != "done" for node in nodes)
        verdict = self.verdict or Verdict(())
        end = self.answer_end or joined_end(sub_queries, nodes)
        return Answer(
            self.query,
            "".join(self.texts),
            plan,
            tuple(execution.routes[sub_query.id] for sub_query in sub_queries),
            nodes,
            self._timings(nodes),
            execution.bound(),
            is_partial=is_partial,
            error=None if error is None else str(error),
            finish_reason="error" if is_partial else end,
            confidence=verdict.confidence,
            is_low_confidence=verdict.is_low,
            usage=self.live.usage.total(),
        )

    def _timings(self, nodes: Sequence[NodeResult]) -> Timings:
        total_s = self.live.elapsed_s()
        last_end_s = max(node.end_s for node in nodes)
        return Timings(
            self.plan_s or total_s,
            self.route_s,
            last_end_s - min(node.start_s for node in nodes),
            total_s - last_end_s,
            self.first_token_s,
            total_s,
        )
