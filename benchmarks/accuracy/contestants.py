"""Who is compared: each contestant turns a composite question into an Outcome.

Comp-LLM runs through `CompLLM.ask` itself; what it is compared with asks the same engine, with the
same prompt format and greedily. Every contestant is asked, or has been trained, to join several
answers by "; ".
"""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace

from benchmarks.accuracy.lab import Lab
from benchmarks.accuracy.ladder import compose_text, run_plan
from benchmarks.accuracy.records import Composite
from benchmarks.accuracy.runner import Outcome
from compllm.backend import GenerateRequest, Prompt, collect
from compllm.catalogue import Catalogue
from compllm.errors import BackendError, ConfigError, DeadlineExceeded, PlanError, QueryError
from compllm.pipeline import CompLLM
from compllm.prompts import REFERENCE, chat, node_prompt
from compllm.types import Expert, NodeResult, Plan, Query, Route, SamplingParams, SubQuery

Ask = Callable[[Composite], Awaitable[Outcome]]
Open = Callable[[Lab], AbstractAsyncContextManager[Ask]]

MONOLITHIC = "monolithic"  # name of the one adapter trained on everything
JOIN_HINT = " Separate several answers by '; '."
COT_SYSTEM = (
    "Answer the question step by step. Then write 'Answer:' and the answer alone, "
    "several answers separated by '; '."
)
_COT_TOKENS = 224
_FINAL = re.compile(r"answer\s*:", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Contestant:
    """Name and meaning, and how to begin; `depends` is what its answers depend on beside the
    lab."""

    name: str
    title: str
    open: Open
    depends: tuple[object, ...] = ()


def contestants(lab: Lab, shots: Sequence[Composite], two: Sequence[str]) -> dict[str, Contestant]:
    """All that this engine allows, by name; without `monolithic` where there is no such adapter.

    shots: worked examples for the chain of thought. two: the experts of Comp-LLM with two.
    """
    every = [
        Contestant("compllm-3", "Comp-LLM, all experts", _compllm()),
        Contestant(
            "compllm-2", f"Comp-LLM, {' and '.join(two)} alone", _compllm(two), (tuple(two),)
        ),
        Contestant("base", "base alone", _alone(told_base)),
        Contestant("base-cot", "base, few-shot chain of thought", _thinking(shots), tuple(shots)),
        Contestant("direct", "experts without decomposition", _direct),
        Contestant("all-nodes", "Comp-LLM, all nodes aggregated", _all_nodes),
        Contestant("gold-plan", "Comp-LLM, gold plan", _gold_plan),
        Contestant("gold-routes", "Comp-LLM, gold plan and routes", _gold_routes),
        Contestant("gold-answers", "Comp-LLM, gold plan, routes and sub-answers", _gold_answers),
    ]
    if MONOLITHIC in lab.adapters:
        depends = (lab.adapters[MONOLITHIC],)
        one = Contestant(MONOLITHIC, "one monolithic adapter", _alone(monolithic), depends)
        every.insert(4, one)
    return {contestant.name: contestant for contestant in every}


def joined(outcome: Outcome) -> Outcome:
    """The outcome of Comp-LLM without composing: its leaves' responses, joined."""
    needed = {parent for above in outcome["parents"] for parent in above}
    leaves = [r for i, r in enumerate(outcome["responses"]) if i not in needed]
    return {**outcome, "answer": "; ".join(response for response in leaves if response)}


# Comp-LLM.


def _compllm(names: Sequence[str] = ()) -> Open:
    @asynccontextmanager
    async def begin(lab: Lab) -> AsyncIterator[Ask]:
        catalogue = with_experts(lab, names) if names else lab.catalogue
        async with CompLLM(lab.backend, lab.encoder, catalogue, lab.config) as llm:
            yield _or_empty(lambda record: ask(llm, record))

    return begin


@asynccontextmanager
async def _all_nodes(lab: Lab) -> AsyncIterator[Ask]:
    @_or_empty
    async def answer(record: Composite) -> Outcome:
        outcome = await ask(llm, record)
        if len(outcome["steps"]) > 1 and not outcome["error"]:
            pairs = [
                (step, response or None)
                for step, response in zip(outcome["steps"], outcome["responses"], strict=True)
            ]
            outcome["answer"] = await compose_text(lab, query_of(record), pairs)
        return outcome

    async with CompLLM(lab.backend, lab.encoder, lab.catalogue, lab.config) as llm:
        yield answer


@asynccontextmanager
async def _gold_plan(lab: Lab) -> AsyncIterator[Ask]:
    async with CompLLM(lab.backend, lab.encoder, lab.catalogue, lab.config) as llm:
        yield _or_empty(lambda record: ask(llm, record, record.plan))


@asynccontextmanager
async def _direct(lab: Lab) -> AsyncIterator[Ask]:
    """A plan of one node is the whole query, routed once."""
    async with CompLLM(lab.backend, lab.encoder, lab.catalogue, lab.config) as llm:
        yield _or_empty(lambda record: ask(llm, record, Plan((SubQuery(1, record.question),))))


@asynccontextmanager
async def _gold_routes(lab: Lab) -> AsyncIterator[Ask]:
    @_or_empty
    async def answer(record: Composite) -> Outcome:
        ran = await run_plan(lab, query_of(record), record.plan, gold_routes(lab, record), {})
        return outcome_of(ran.answer, record.plan, ran.nodes)

    yield answer


@asynccontextmanager
async def _gold_answers(lab: Lab) -> AsyncIterator[Ask]:
    @_or_empty
    async def answer(record: Composite) -> Outcome:
        routes = gold_routes(lab, record)
        ran = await run_plan(lab, query_of(record), record.plan, routes, record.gold)
        return outcome_of(ran.answer, record.plan, ran.nodes)

    yield answer


def _or_empty(answer: Ask) -> Ask:
    """A question that the engine refuses or fails at is an empty answer with its error; an
    EngineClosed, which is not that question's fault, passes."""

    @functools.wraps(answer)
    async def guarded(record: Composite) -> Outcome:
        try:
            return await answer(record)
        except (BackendError, DeadlineExceeded, PlanError, QueryError) as error:
            return outcome_of("", Plan(()), (), str(error))

    return guarded


async def ask(llm: CompLLM, record: Composite, plan: Plan | None = None) -> Outcome:
    """Through the whole pipeline. Raises what `CompLLM.ask` does."""
    answer = await llm.ask(query_of(record), plan=plan)
    return outcome_of(answer.text, answer.plan, answer.nodes, answer.error)


def outcome_of(
    answer: str, plan: Plan, nodes: Sequence[NodeResult], error: str | None = None
) -> Outcome:
    """What is kept of an answer; parents count from 0 as in the data sets."""
    return {
        "answer": answer.strip(),
        "steps": [sub_query.text for sub_query in plan.sub_queries],
        "parents": [[p - 1 for p in sub_query.parents] for sub_query in plan.sub_queries],
        "is_fallback": plan.is_fallback,
        "experts": [node.expert for node in nodes],
        "responses": [node.response for node in nodes],
        "error": error,
    }


def with_experts(lab: Lab, names: Sequence[str]) -> Catalogue:
    """The catalogue with these experts alone. The router stays what it is, so that nothing else
    changes: what it sends to the others the base answers."""
    for name in names:
        lab.catalogue.expert(name)
    system = lab.catalogue.base.system
    experts = tuple(
        expert
        if expert.name in names
        else replace(expert, system=system, adapter=None, adapter_id=None)
        for expert in lab.catalogue.experts
    )
    return replace(lab.catalogue, experts=experts)


def gold_routes(lab: Lab, record: Composite) -> tuple[Route, ...]:
    """To the expert of each node's domain; a domain without one is the base's."""
    known = {expert.name for expert in lab.catalogue.experts}
    base = lab.catalogue.base.name
    return tuple(
        Route(domain if domain in known else base, 1.0, domain not in known)
        for domain in record.experts
    )


def query_of(record: Composite) -> Query:
    return Query(record.question, id=record.id)


# What it is compared with: one request a question.


def _alone(pick: Callable[[Lab], Expert]) -> Open:
    """The whole question to one model."""

    @asynccontextmanager
    async def begin(lab: Lab) -> AsyncIterator[Ask]:
        expert, template = pick(lab), lab.catalogue.template
        sampling = SamplingParams(max_tokens=lab.config.limits.max_node_tokens)

        @_or_empty
        async def answer(record: Composite) -> Outcome:
            prompt = node_prompt(expert, record.question, template=template)
            return await _request(lab, record, prompt, sampling, expert.adapter_id)

        yield answer

    return begin


def told_base(lab: Lab) -> Expert:
    """The base with a prompt that says how several answers are written."""
    base = lab.catalogue.base
    return replace(base, system=base.system + JOIN_HINT)


def monolithic(lab: Lab) -> Expert:
    """Trained without a system text, as every adapter is."""
    return Expert(MONOLITHIC, "", "", adapter=MONOLITHIC, adapter_id=lab.adapters[MONOLITHIC])


def _thinking(shots: Sequence[Composite]) -> Open:
    @asynccontextmanager
    async def begin(lab: Lab) -> AsyncIterator[Ask]:
        if not shots:
            raise ConfigError("the chain of thought needs examples: is there a train split?")
        turns = [("system", COT_SYSTEM)]
        for shot in shots:
            turns += (("user", shot.question), ("assistant", thought(shot)))

        @_or_empty
        async def answer(record: Composite) -> Outcome:
            prompt = chat(lab.catalogue.template, [*turns, ("user", record.question)])
            outcome = await _request(lab, record, prompt, SamplingParams(_COT_TOKENS))
            return {**outcome, "answer": final(outcome["answer"]), "thought": outcome["answer"]}

        yield answer

    return begin


def thought(record: Composite) -> str:
    """The gold plan as a chain of thought: every sub-query with its answer, then the answer."""
    lines = []
    for sub_query, answer in zip(record.plan.sub_queries, record.answers, strict=True):
        text = REFERENCE.sub(lambda found: record.gold[int(found[1])], sub_query.text)
        lines.append(f"{text} {answer}")
    return "\n".join([*lines, f"Answer: {record.answer}"])


def final(text: str) -> str:
    """What follows the last "Answer:", else the last line: a model that forgot the mark may still
    have ended with its answer."""
    pieces = _FINAL.split(text)
    if len(pieces) > 1:
        return pieces[-1].strip()
    return text.strip().rpartition("\n")[2]


async def _request(
    lab: Lab,
    record: Composite,
    prompt: Prompt,
    sampling: SamplingParams,
    adapter_id: int | None = None,
) -> Outcome:
    request = GenerateRequest(
        record.id, prompt, sampling, lab.catalogue.base.model, adapter_id=adapter_id
    )
    text, _ = await collect(lab.backend, request)
    return outcome_of(text, Plan(()), ())
