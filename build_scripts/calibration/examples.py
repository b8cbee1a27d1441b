"""Questions asked of a running system -> one example for each leaf of each plan."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from compllm.build_scripts.calibration.questions import Known, is_right
from compllm.confidence import base_features, closure, expert_features, is_unknown
from compllm.errors import CompllmError
from compllm.pipeline import CompLLM
from compllm.types import Answer

Source = Literal["expert", "base"]


@dataclass(frozen=True, slots=True)
class Example:
    """A leaf's features, and whether its response is right."""

    source: Source  # base: one node of the base; expert: everything it rests on is an expert's
    features: tuple[float, ...]
    is_right: bool
    is_answer_right: bool  # of the whole question: every part stands in some leaf
    kind: str
    question: str
    response: str


async def collect(
    llm: CompLLM,
    questions: Sequence[Known],
    *,
    num_at_once: int = 8,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Example]:
    """Ask every question; the system withholds nothing (answer.abstain = "never").

    A question that fails gives no example, nor does a leaf that says itself that it does not know,
    or one that rests on experts and the base together.
    """
    slots = asyncio.Semaphore(num_at_once)
    num_done = 0

    async def ask(known: Known) -> list[Example]:
        nonlocal num_done
        async with slots:
            try:
                answer = await llm.ask(known.text)
            except CompllmError:
                return []
            finally:
                num_done += 1
                progress(num_done, len(questions))
        return examples_of(answer, known, llm.catalogue.base.name)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(ask(known)) for known in questions]
    return [example for task in tasks for example in task.result()]


def examples_of(answer: Answer, known: Known, base: str) -> list[Example]:
    """One for each leaf. With more or fewer leaves than the question has parts, each is as right as
    the whole answer: the plan is then in question, too."""
    lines = answer.plan.sub_queries
    above = {parent for line in lines for parent in line.parents}
    leaves = [line.id for line in lines if line.id not in above]
    nodes = {
        line.id: (node, route)
        for line, node, route in zip(lines, answer.nodes, answer.routes, strict=False)
    }
    is_matched = len(leaves) == len(known.parts)
    said = [nodes[leaf][0].response for leaf in leaves if leaf in nodes]
    all_right = all(any(is_right(each, part) for each in said) for part in known.parts)
    found = []
    for place, leaf in enumerate(leaves):
        below = [nodes[each] for each in closure(lines, leaf) if each in nodes]
        if any(is_unknown(node.response) or not node.log_probs for node, _ in below):
            continue
        response = nodes[leaf][0].response
        right = is_right(response, known.parts[place]) if is_matched else all_right
        source: Source
        if all(node.expert != base for node, _ in below):
            source, features = "expert", expert_features(answer.plan, below)
        elif len(below) == 1:
            source, features = "base", base_features(*below[0])
        else:
            continue
        found.append(Example(source, features, right, all_right, known.kind, known.text, response))
    return found
