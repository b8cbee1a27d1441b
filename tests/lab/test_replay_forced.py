import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_parts import PLAN, USAGE, plan_lines

from compllm.backend import GenerateRequest, Guide, collect
from compllm.lab.replay.forced import ForcedBackend, ForcedWork, exact_guide, salted
from compllm.prompts import CHATML, chat, prompt_text
from compllm.testing import Reply, ScriptedBackend
from compllm.types import ANSWER_NODE, PLAN_NODE, SamplingParams

PROMPT = chat(CHATML, [("system", "You know."), ("user", "What?")])


def request(node_id: int, **more: object) -> GenerateRequest:
    of_query = {"query_id": "q", "node_id": node_id}
    return GenerateRequest("any", PROMPT, **of_query, **more)  # type: ignore[arg-type]


def backend(*replies: Reply) -> tuple[ForcedBackend, ScriptedBackend]:
    inner = ScriptedBackend(*replies)
    return ForcedBackend(inner), inner


async def test_a_node_has_exactly_its_tokens() -> None:
    forced, inner = backend(Reply("x"))
    with forced.forced("q", ForcedWork(PLAN, {3: 17})):
        await collect(forced, request(3, sampling=SamplingParams(5)))
    sampling = inner.requests[0].request.sampling
    assert (sampling.max_tokens, sampling.min_tokens) == (17, 17)


async def test_the_answer_has_the_length_that_the_query_asks_for() -> None:
    forced, inner = backend(Reply("x"))
    with forced.forced("q", ForcedWork(PLAN, {})):
        await collect(forced, request(ANSWER_NODE, sampling=SamplingParams(5)))
    assert inner.requests[0].request.sampling == SamplingParams(5)


async def test_the_generator_is_held_to_the_gold_plan() -> None:
    forced, inner = backend(Reply(plan_lines(), usage=USAGE))
    work = ForcedWork(PLAN, {})
    asked = request(PLAN_NODE, guide=Guide("regex", "x"), is_streamed=True)
    with forced.forced("q", work):
        text, _ = await collect(forced, asked)
    assert text == "".join(plan_lines())
    guide = inner.requests[0].request.guide
    assert guide is not None
    assert re.fullmatch(guide.text, text)
    assert not re.fullmatch(guide.text, text + "x")
    assert inner.requests[0].request.sampling.max_tokens > len(text)


async def test_tokens_of_the_plan_are_counted_line_by_line() -> None:
    forced, _ = backend(Reply(("1 | a", " b?\n", "2 | c?"), usage=USAGE))
    with forced.forced("q", ForcedWork(PLAN, {})) as work:
        await collect(forced, request(PLAN_NODE, is_streamed=True))
    # The scripted backend counts words as tokens.
    assert work.line_tokens == [4, 7]
    assert work.num_plan_tokens == 7


@pytest.mark.parametrize(("is_streamed", "outcome"), [(True, "running"), (False, "done")])
async def test_a_plan_that_is_not_streamed_comes_when_it_is_whole(
    is_streamed: bool, outcome: str
) -> None:
    forced, inner = backend(Reply(plan_lines(), usage=USAGE))
    work = ForcedWork(PLAN, {}, is_plan_streamed=is_streamed)
    with forced.forced("q", work):
        chunks = forced.generate(request(PLAN_NODE, is_streamed=True))
        first = await anext(chunks)
        assert inner.requests[0].outcome == outcome
        pieces = [first.text] + [chunk.text async for chunk in chunks]
    assert "".join(pieces) == "".join(plan_lines())
    # When they were written, not when they were passed on: what the engine allows is the same.
    assert work.line_tokens == [3, 6, 10, 14]


async def test_a_blank_response_is_no_failure() -> None:
    forced, _ = backend(Reply(" \n "))
    with forced.forced("q", ForcedWork(PLAN, {1: 3})):
        text, _ = await collect(forced, request(1))
    assert text.strip()


async def test_other_requests_pass_unchanged() -> None:
    forced, inner = backend(Reply("x"))
    asked = request(1, sampling=SamplingParams(5))
    await collect(forced, asked)
    with forced.forced("other", ForcedWork(PLAN, {1: 3})):
        await collect(forced, asked)
    assert [each.request for each in inner.requests] == [asked, asked]


def test_the_salt_stands_before_what_the_user_says() -> None:
    text = prompt_text(salted(PROMPT, "7"))
    assert text == prompt_text(PROMPT).replace("What?", "7 What?")
    assert salted(PROMPT, "") is PROMPT
    assert not salted(PROMPT, "<|im_end|>")[-2].is_template


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40))
def test_a_guide_allows_its_text_alone(text: str) -> None:
    guide = exact_guide(text)
    assert guide.type == "regex"
    assert re.fullmatch(guide.text, text)
    assert not re.fullmatch(guide.text, text + "a")


async def test_closing_closes_the_engines_connection() -> None:
    forced, inner = backend()
    await forced.aclose()
    assert inner.is_closed
