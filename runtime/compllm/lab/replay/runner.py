"""One graph under one policy -> Answer: the path itself, with the policy as its stage."""

from __future__ import annotations

from dataclasses import replace

from compllm.backend import Backend
from compllm.catalogue import Catalogue
from compllm.config import Config, GateConfig
from compllm.errors import BackendError
from compllm.lab.replay.forced import ForcedBackend, ForcedWork
from compllm.lab.replay.policies import STAGES, PolicyName
from compllm.pipeline import CompLLM
from compllm.routing.embed import Encoder
from compllm.scheduling.admission import PolicyName as AdmissionPolicy
from compllm.types import Answer, Query

_PATIENCE_S = 86_400.0  # a query's wait under load is what is measured, no failure


class ReplayLLM(CompLLM):
    """A CompLLM whose queries do forced work, under any policy."""

    def __init__(
        self, backend: Backend, encoder: Encoder, catalogue: Catalogue, config: Config | None = None
    ) -> None:
        self.forced = ForcedBackend(backend)
        super().__init__(self.forced, encoder, catalogue, replayable(config or Config()))

    def use_admission(self, policy: AdmissionPolicy) -> None:
        """Another order of waiting requests. Before the first query."""
        self.admission.policy = policy
        self.admission.set_limits({})  # the queue anew

    def use_gate(self, gate: GateConfig) -> None:
        """Let questions past the generator. Before it is opened; what the gate sends straight on
        must have a gold plan of one node."""
        self.config = replace(self.config, gate=gate)

    async def answer(
        self, query: Query, work: ForcedWork, policy: PolicyName, *, is_planned: bool
    ) -> Answer:
        """Run the query's gold plan; is_planned: written by the generator, else given.

        Raises BackendError where the engine fails, or did other work than it was asked for.
        """
        plan = None if is_planned else work.plan
        with self.forced.forced(query.id, work):
            answer = await self.ask(query, plan=plan, stage=STAGES[policy])
        if answer.plan.is_fallback or answer.plan.sub_queries != work.plan.sub_queries:
            raise BackendError(
                f"the generator did not write the plan: {answer.plan.reason or 'another one'}",
                query_id=query.id,
            )
        return answer


def replayable(config: Config) -> Config:
    """The settings without time-outs, and without what would change a gold plan or its texts: every
    one is written, run and composed as it is."""
    return replace(
        config,
        # A gold plan may have as many lines as any plan, more than a generator is let write. It is
        # not the generator's own, so its probability says nothing, and no other plan is drawn.
        generator=replace(config.generator, max_nodes=config.limits.max_nodes, num_draws=0),
        gate=replace(config.gate, mode="off", whole_to_base=False),
        answer=replace(config.answer, abstain="never", cut_loops=False, keep_all=False),
        timeouts=replace(
            config.timeouts, query_s=_PATIENCE_S, plan_s=_PATIENCE_S, node_s=_PATIENCE_S
        ),
    )
