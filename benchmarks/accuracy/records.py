"""The data sets of the evaluation: JSON lines on disk -> frozen records, checked as they are read.

`make_datasets.py` writes them: `p`, `all` (composite questions), `generator` (question -> plan),
a folder for each domain (one-step questions, some with parents) and `aggregator`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from compllm.errors import CompllmError, ConfigError
from compllm.plan import make_plan, parse_plan
from compllm.types import Plan, SubQuery

R = TypeVar("R")

Pairs = tuple[tuple[str, str], ...]  # (question, response)


@dataclass(frozen=True, slots=True)
class Composite:
    """A composite question with its gold plan, routes, sub-answers and answer."""

    id: str
    set: str  # p | all
    question: str
    plan: Plan
    experts: tuple[str, ...]  # domain of each node
    kinds: tuple[str, ...]  # question kind of each node
    answers: tuple[str, ...]  # of each node
    answer: str  # of the leaves, joined by "; "

    @property
    def leaves(self) -> tuple[int, ...]:
        """Ids of the nodes that no other node needs."""
        needed = {parent for sub_query in self.plan.sub_queries for parent in sub_query.parents}
        return tuple(s.id for s in self.plan.sub_queries if s.id not in needed)

    @property
    def gold(self) -> dict[int, str]:
        """Answer of each node by its id."""
        return {s.id: a for s, a in zip(self.plan.sub_queries, self.answers, strict=True)}


@dataclass(frozen=True, slots=True)
class PlanItem:
    """A question and its gold plan."""

    id: str
    source: str
    question: str
    plan: Plan


@dataclass(frozen=True, slots=True)
class NodeItem:
    """A question for one expert; `parents` are the responses that it is given."""

    id: str
    domain: str
    kind: str
    question: str
    parents: Pairs
    answer: str


@dataclass(frozen=True, slots=True)
class AggregatorItem:
    """Facts, and the answer to compose out of them."""

    id: str
    question: str
    facts: Pairs
    answer: str


def read_composites(path: Path) -> list[Composite]:
    return list(_read(path, _composite))


def read_plans(path: Path) -> list[PlanItem]:
    return list(_read(path, _plan_item))


def read_nodes(path: Path) -> list[NodeItem]:
    return list(_read(path, _node_item))


def read_facts(path: Path) -> list[AggregatorItem]:
    return list(_read(path, _aggregator_item))


def plan_of(steps: list[str], parents: list[list[int]]) -> Plan:
    """A plan of step texts and their parents, which count from 0. Raises PlanError."""
    pairs = enumerate(zip(steps, parents, strict=True), start=1)
    return make_plan([SubQuery(i, text, tuple(p + 1 for p in above)) for i, (text, above) in pairs])


def _read(path: Path, build: Callable[[Mapping[str, Any]], R]) -> Iterator[R]:
    """Raises ConfigError that names the file and the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}: make the data sets with "
            "'python -m build_scripts.make_datasets' or name their folder with --data"
        ) from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield build(json.loads(line))
        except (ValueError, KeyError, TypeError, CompllmError) as error:
            raise ConfigError(f"{path} line {number} is no record of its kind: {error!r}") from None


def _composite(value: Mapping[str, Any]) -> Composite:
    record = Composite(
        str(value["id"]),
        str(value["set"]),
        str(value["question"]),
        plan_of(value["steps"], value["parents"]),
        tuple(map(str, value["experts"])),
        tuple(map(str, value["kinds"])),
        tuple(map(str, value["answers"])),
        str(value["answer"]),
    )
    for column in (record.experts, record.kinds, record.answers):
        if len(column) != len(record.plan.sub_queries):
            raise ValueError(f"{len(column)} entries for {len(record.plan.sub_queries)} steps")
    return record


def _plan_item(value: Mapping[str, Any]) -> PlanItem:
    return PlanItem(
        str(value["id"]), str(value["source"]), str(value["question"]), parse_plan(value["plan"])
    )


def _node_item(value: Mapping[str, Any]) -> NodeItem:
    return NodeItem(
        str(value["id"]),
        str(value["domain"]),
        str(value["kind"]),
        str(value["question"]),
        _pairs(value.get("parents", ())),
        str(value["answer"]),
    )


def _aggregator_item(value: Mapping[str, Any]) -> AggregatorItem:
    return AggregatorItem(
        str(value["id"]), str(value["question"]), _pairs(value["facts"]), str(value["answer"])
    )


def _pairs(values: Any) -> Pairs:
    """Facts as `{"question": ..., "response": ...}` or as `[question, response]`."""
    pairs = [(v["question"], v["response"]) if isinstance(v, dict) else tuple(v) for v in values]
    return tuple((str(question), str(response)) for question, response in pairs)
