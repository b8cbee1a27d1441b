"""One step alone: what each expert knows (given gold parents), and what the aggregator composes.

Rows by kind of question show which kinds cost a composite its answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.accuracy.contestants import MONOLITHIC, monolithic
from benchmarks.accuracy.lab import Lab
from benchmarks.accuracy.ladder import compose_text
from benchmarks.accuracy.metrics import contains_all, is_exact
from benchmarks.accuracy.records import AggregatorItem, NodeItem
from benchmarks.accuracy.runner import Outcome, Work, run_records
from benchmarks.intervals import mean
from benchmarks.report import Row
from benchmarks.tables import interval_cells
from compllm.backend import GenerateRequest, collect
from compllm.prompts import node_prompt
from compllm.types import Expert, Query, SamplingParams

DOMAINS = ("chemistry", "biology", "mathematics")


@dataclass(frozen=True, slots=True)
class Answered:
    """Items of one domain and what one model said."""

    domain: str
    model: str
    items: Sequence[NodeItem]
    answers: Sequence[str]

    @property
    def hits(self) -> list[bool]:
        pairs = zip(self.answers, self.items, strict=True)
        return [is_exact(answer, item.answer) for answer, item in pairs]


async def answer_nodes(lab: Lab, items: Mapping[str, list[NodeItem]], work: Work) -> list[Answered]:
    """Each domain's items by its expert, by the base, and by the monolithic adapter if there is
    one."""
    known = {expert.name: expert for expert in lab.catalogue.experts}
    found = []
    for domain, questions in items.items():
        models = {"expert": known[domain]} if domain in known else {}
        models["base"] = lab.catalogue.base
        if MONOLITHIC in lab.adapters:
            models[MONOLITHIC] = monolithic(lab)
        for name, expert in models.items():
            outcomes = await run_records(
                f"nodes: {domain}, {name}",
                questions,
                lambda item, expert=expert: _ask(lab, item, expert),  # type: ignore[misc]
                lab.store(f"nodes-{domain}-{name}", expert=expert),
                work,
            )
            answers = [outcome["answer"] for outcome in outcomes]
            found.append(Answered(domain, name, questions, answers))
    return found


async def _ask(lab: Lab, item: NodeItem, expert: Expert) -> Outcome:
    prompt = node_prompt(expert, item.question, item.parents, lab.catalogue.template)
    sampling = SamplingParams(max_tokens=lab.config.limits.max_node_tokens)
    request = GenerateRequest(item.id, prompt, sampling, expert.model, expert.adapter_id)
    text, _ = await collect(lab.backend, request)
    return {"answer": text.strip()}


def domain_rows(answered: Sequence[Answered], seed: int) -> list[Row]:
    return [
        {
            "domain": each.domain,
            "model": each.model,
            "questions": len(each.items),
            **interval_cells("exact", mean(each.hits, seed)),
        }
        for each in answered
    ]


def kind_rows(answered: Sequence[Answered]) -> list[Row]:
    """One row a kind, one column a model."""
    rows: dict[tuple[str, str], Row] = {}
    for each in answered:
        hits: dict[str, list[bool]] = {}
        for item, hit in zip(each.items, each.hits, strict=True):
            hits.setdefault(item.kind, []).append(hit)
        for kind, found in hits.items():
            head: Row = {"domain": each.domain, "kind": kind, "questions": len(found)}
            row = rows.setdefault((each.domain, kind), head)
            row[f"{each.model}_%"] = round(100 * sum(found) / len(found), 1)
    return [rows[key] for key in sorted(rows)]


async def aggregator_rows(
    lab: Lab, items: Sequence[AggregatorItem], work: Work, seed: int
) -> list[Row]:
    """By the number of facts; the aggregator is asked for a single one too."""
    compose_settings = replace(lab.config.compose, policy="always")
    always = replace(lab, config=replace(lab.config, compose=compose_settings))

    async def compose(item: AggregatorItem) -> Outcome:
        query = Query(item.question, id=item.id)
        return {"answer": await compose_text(always, query, item.facts)}

    outcomes = await run_records("aggregator", items, compose, always.store("aggregator"), work)
    groups: dict[int, list[tuple[str, str]]] = {}
    for item, outcome in zip(items, outcomes, strict=True):
        groups.setdefault(len(item.facts), []).append((outcome["answer"], item.answer))
    return [
        {
            "facts": count,
            "questions": len(pairs),
            **interval_cells("exact", mean([is_exact(*pair) for pair in pairs], seed)),
            **interval_cells("contains", mean([contains_all(*pair) for pair in pairs], seed)),
        }
        for count, pairs in sorted(groups.items())
    ]
