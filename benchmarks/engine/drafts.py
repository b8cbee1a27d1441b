"""Speculative decoding by look-up, on paper: what is drafted, what is kept, and what that takes.

The arithmetic of `bench_lookup.py`. A known text is decoded again: nothing here computes a token.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compllm.embedded.guide import Guide
    from compllm.lab.engine_profile import EngineProfile


@dataclass(frozen=True, slots=True)
class Case:
    """A plan and what the generator read for it, in token ids."""

    prompt: tuple[int, ...]
    tokens: tuple[int, ...]  # the end token last
    source: str = ""  # of the question


@dataclass(frozen=True, slots=True)
class Form:
    """How a draft is made."""

    ngrams: tuple[int, ...]
    num_draft: int
    memory: Mapping[tuple[int, ...], tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Costs:
    """What a step takes: the engine's own time by tokens, and what drafting adds to it."""

    profile: EngineProfile
    mask_ms: float = 0.0  # of the guide, for each token that is computed
    draft_ms: float = 0.0  # of each look-up, found or not

    def step_ms(self, tokens: int, planned: int, lookups: int) -> float:
        """tokens: computed in the step; planned: of those, under a guide; lookups: made for it."""
        own = self.profile.step_time_ms(tokens)
        return own + planned * self.mask_ms + lookups * self.draft_ms


def look_up(context: Sequence[int], form: Form) -> list[int]:
    """What followed the latest earlier occurrence of the context's end, or the memory's word on it;
    empty for none."""
    for length in form.ngrams:
        end = list(context[-length:])
        for start in range(len(context) - length - 1, -1, -1):
            if context[start] == end[0] and list(context[start : start + length]) == end:
                return list(context[start + length : start + length + form.num_draft])
        if found := form.memory.get(tuple(end)):
            return list(found)
    return []


def remember(plans: Iterable[Sequence[int]], ngrams: Sequence[int], num_draft: int) -> Form:
    """A form whose memory has what followed each n-gram of these plans most often; of two, the
    earlier one."""
    counts: dict[tuple[int, ...], collections.Counter[tuple[int, ...]]] = {}
    for plan in map(tuple, plans):
        for length in ngrams:
            for end in range(length, len(plan)):
                seen = counts.setdefault(plan[end - length : end], collections.Counter())
                seen[plan[end : end + num_draft]] += 1
    memory = {ngram: seen.most_common(1)[0][0] for ngram, seen in counts.items()}
    return Form(tuple(ngrams), num_draft, memory)


def decode(case: Case, form: Form, guide: Guide) -> list[tuple[int, int]]:
    """(tokens drafted, drafted tokens kept) of each decoding step. The plan's first token is the
    prefill's, and a step with nothing kept writes one token, as without drafts."""
    context = [*case.prompt, case.tokens[0]]
    guide.accept(case.tokens[0])
    steps = []
    at = 1
    while at < len(case.tokens):
        drafted = look_up(context, form)
        # The guide's own state: nobody but this benchmark asks how far a guide would follow.
        drafted = drafted[: guide._matcher.validate_tokens(drafted)] if drafted else []
        rest = case.tokens[at:]
        pairs = enumerate(zip(drafted, rest, strict=False))
        kept = next((i for i, (ours, real) in pairs if ours != real), min(len(drafted), len(rest)))
        new = rest[: kept + 1]  # the token after the last kept one comes from the same step
        for token in new:
            guide.accept(token)
        context += new
        at += len(new)
        steps.append((len(drafted), kept))
    return steps


def all_plan_ms(
    plans: Iterable[Sequence[int]], live: int, costs: Costs, *, is_drafting: bool
) -> float:
    """Time of all plans, `live` at a time, each next one begun when one has ended. A plan is its
    steps' numbers of drafted tokens."""
    waiting = [list(plan) for plan in reversed(list(plans))]
    running: list[list[int]] = []
    total = 0.0
    while True:
        running = [plan for plan in running if plan]
        while waiting and len(running) < live:
            running.append(waiting.pop())
        if not running:
            return total
        tokens = sum(1 + plan.pop(0) for plan in running)
        total += costs.step_ms(tokens, tokens, len(running) if is_drafting else 0)


def one_plans_ms(
    plans: Iterable[Sequence[int]], live: int, costs: Costs, *, is_drafting: bool
) -> float:
    """Time of all plans one after another, beside `live - 1` requests that decode a token a
    step."""
    return sum(
        costs.step_ms(live + drafted, 1 + drafted, int(is_drafting))
        for plan in plans
        for drafted in plan
    )
