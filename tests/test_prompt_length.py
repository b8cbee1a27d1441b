"""A question is measured in tokens before anything is sent: one limit, one message."""

from __future__ import annotations

import pytest
from path_parts import (
    BASE,
    CATALOGUE,
    CHEMISTRY,
    IRON,
    MATHEMATICS,
    NODES,
    TWO_LEAVES,
    node_reply,
    plan_reply,
    settings,
)

from compllm.backend import Prompt
from compllm.errors import INVALID, QueryError, situation_of
from compllm.pipeline import CompLLM
from compllm.plan import direct_plan, parse_plan
from compllm.prompts import generator_prompt, node_prompt, prompt_text
from compllm.testing import HashingEncoder, Reply, ScriptedBackend

ROOM = 60  # tokens of a question
LENGTH = len(prompt_text(generator_prompt("")).encode()) + 160 + ROOM

LONG = " ".join(map(str, range(LENGTH)))  # nothing in it repeats itself


class MeasuringBackend(ScriptedBackend):
    """An engine of this length whose tokenizer makes a token of each byte."""

    def __init__(self, *replies: Reply, length: int | None = LENGTH) -> None:
        super().__init__(*replies)
        self.length = length
        self.num_counted = 0

    async def num_tokens(self, prompt: Prompt) -> int:
        self.num_counted += 1
        return len(prompt_text(prompt).encode())

    def max_seq_len(self, model: str) -> int | None:
        return self.length


def make(backend: ScriptedBackend, **overrides: object) -> CompLLM:
    return CompLLM(backend, HashingEncoder(), CATALOGUE, settings(**overrides))


async def test_a_question_of_few_characters_and_many_tokens_is_refused_as_bad_input() -> None:
    """8,000 characters of Chinese passed the limit in characters and failed in the engine."""
    backend = MeasuringBackend()
    async with make(backend) as llm:
        for ask in (llm.ask, llm.plan):
            with pytest.raises(QueryError) as caught:
                await ask("铁" * 21)
            assert f"the question has 63 tokens; the limit is {ROOM}: shorten it" in str(
                caught.value
            )
            assert situation_of(caught.value) == INVALID
    assert not backend.requests


async def test_a_question_of_exactly_the_limit_is_asked() -> None:
    backend = MeasuringBackend(plan_reply(f"1 | {IRON}"), *NODES)
    async with make(backend) as llm:
        assert (await llm.ask("铁" * 20)).text == "26"


async def test_a_question_without_a_plan_has_the_room_that_its_expert_has() -> None:
    around = max(
        len(prompt_text(node_prompt(each, "")).encode()) for each in (BASE, CHEMISTRY, MATHEMATICS)
    )
    room = LENGTH - 96 - around
    backend = MeasuringBackend(Reply("26"))
    async with make(backend) as llm:
        longest = "a" * room
        assert (await llm.ask(longest, plan=direct_plan(longest))).text == "26"
        with pytest.raises(QueryError, match=f"{room + 1} tokens; the limit is {room}: shorten"):
            await llm.ask(longest + "a", plan=direct_plan(longest + "a"))


async def test_characters_are_counted_first_and_short_questions_never_in_tokens() -> None:
    backend = MeasuringBackend(plan_reply(f"1 | {IRON}"), *NODES, length=10_000)
    async with make(backend) as llm:
        with pytest.raises(QueryError, match="8001 characters, at most 8000"):
            await llm.ask("a" * 8001)
        await llm.ask("Iron?")
    assert backend.num_counted == 0


@pytest.mark.parametrize("length", [None, 8], ids=["unknown", "too short for any plan"])
async def test_an_engine_that_reports_no_usable_length_refuses_nothing_here(
    length: int | None,
) -> None:
    backend = MeasuringBackend(plan_reply(f"1 | {IRON}"), *NODES, Reply("26"), length=length)
    async with make(backend) as llm:
        if length is None:
            assert (await llm.ask("铁" * 2000)).text == "26"
        else:
            remedy = r"leave no room in the engine: lower limits\.max_node_tokens"
            with pytest.raises(Exception, match=remedy) as caught:
                await llm.ask("Iron?")
            assert not isinstance(caught.value, QueryError)


async def test_facts_that_do_not_fit_into_the_answers_prompt_are_joined() -> None:
    backend = MeasuringBackend(
        plan_reply(*TWO_LEAVES), node_reply(IRON, LONG), *NODES, length=LENGTH
    )
    async with make(backend) as llm:
        answer = await llm.ask("Iron and neon?")
    assert not answer.is_partial
    assert answer.text.count(LONG) == 1
    assert "10" in answer.text


async def test_a_sub_query_whose_parents_said_too_much_is_named_with_the_limit() -> None:
    plan = parse_plan(f"1 | {IRON}\n2 <1> | What is the half of that?\n")
    backend = MeasuringBackend(node_reply(IRON, LONG), *NODES)
    async with make(backend, compose__policy="never") as llm:
        answer = await llm.ask("Half of iron?", plan=plan)
    assert answer.is_partial
    assert answer.error is not None
    assert answer.error.startswith("sub-query 2 has, with its parents' responses, ")
    assert answer.error.endswith(f"tokens; the limit is {LENGTH - 96}")
