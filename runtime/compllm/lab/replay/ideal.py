"""The shortest time that a graph allows on an engine: the bound that a replay is measured against.

A run without any overhead of host, wire or scheduler: every node joins the very next step of the
engine when its last parent ends (and the plan's line that names it is written), steps take what the
engine was measured to take at their batch size. Nodes that run together make each other slower, as
they do on the engine; that is the difference from the structural bound, nodes over depth.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from compllm.lab.engine_profile import EngineProfile
from compllm.types import ANSWER_NODE, PLAN_NODE


@dataclass(frozen=True, slots=True)
class Load:
    """What one request is for the engine."""

    num_prompt_tokens: int  # to be computed: without those that its cache has
    num_new_tokens: int
    parents: tuple[int, ...] = ()
    num_plan_tokens: int = 0  # tokens of the plan after which the node is known

    def alone_ms(self, profile: EngineProfile) -> float:
        """On an engine that does nothing else."""
        prefill_ms = profile.step_time_ms(0) + profile.prefill_ms_per_token * self.num_prompt_tokens
        return prefill_ms + (self.num_new_tokens - 1) * profile.step_time_ms(1)


@dataclass(slots=True)
class _Running:
    num_prompt_left: int
    num_new_left: int


def sequential_ms(loads: Iterable[Load], profile: EngineProfile) -> float:
    """One after another."""
    return sum(load.alone_ms(profile) for load in loads)


def structural_speedup(loads: Mapping[int, Load]) -> float:
    """All nodes' tokens over those of the longest path: nodes / depth where they are of one length.
    The plan and the answer are not counted."""
    longest: dict[int, int] = {}
    for node_id in sorted(loads.keys() - {PLAN_NODE, ANSWER_NODE}):
        load = loads[node_id]
        above = max((longest[parent] for parent in load.parents), default=0)
        longest[node_id] = above + load.num_new_tokens
    return sum(loads[each].num_new_tokens for each in longest) / max(longest.values())


@dataclass(frozen=True, slots=True)
class Ideal:
    """Of one query, from the first step."""

    total_ms: float
    first_token_ms: float  # of the answer; without one, the end

    @property
    def ttft_of_total(self) -> float:
        return self.first_token_ms / self.total_ms


def ideal(loads: Mapping[int, Load], profile: EngineProfile) -> Ideal:
    """Step by step, to the last. Parents are keys of `loads`."""
    waiting, running = dict(loads), dict[int, _Running]()
    ended: set[int] = set()
    num_planned, total_ms = 0, 0.0
    first_token_ms: float | None = None
    while waiting or running:
        for each in [each for each, load in waiting.items() if _is_ready(load, ended, num_planned)]:
            load = waiting.pop(each)
            running[each] = _Running(max(1, load.num_prompt_tokens), load.num_new_tokens)
        assert running, "a parent is missing, or the plan never comes so far"
        total_ms += _step(running, profile)
        answer, plan = running.get(ANSWER_NODE), running.get(PLAN_NODE)
        if answer is not None and first_token_ms is None and not answer.num_prompt_left:
            first_token_ms = total_ms
        if plan is not None:
            num_planned = loads[PLAN_NODE].num_new_tokens - plan.num_new_left
        for each in [each for each, left in running.items() if left.num_new_left <= 0]:
            del running[each]
            ended.add(each)
    return Ideal(total_ms, total_ms if first_token_ms is None else first_token_ms)


def _is_ready(load: Load, ended: set[int], num_planned: int) -> bool:
    return num_planned >= load.num_plan_tokens and ended.issuperset(load.parents)


def _step(running: Mapping[int, _Running], profile: EngineProfile) -> float:
    """One token of every decode, prefill in what is left of the step; gives its milliseconds."""
    decoding = [left for left in running.values() if not left.num_prompt_left]
    budget = profile.max_num_tokens - len(decoding)
    num_prefilled = 0
    for left in running.values():
        if not left.num_prompt_left:
            continue
        count = min(left.num_prompt_left, budget - num_prefilled)
        left.num_prompt_left -= count
        num_prefilled += count
        left.num_new_left -= not left.num_prompt_left  # the prompt's end gives the first token
    for left in decoding:
        left.num_new_left -= 1
    mixed_ms = profile.mixed_ms if decoding and num_prefilled else 0.0
    step_ms = profile.step_time_ms(len(decoding))
    return step_ms + profile.prefill_ms_per_token * num_prefilled + mixed_ms
