import asyncio

import pytest

from compllm.compose import Aggregator, compose, join, joined_end
from compllm.errors import BackendUnavailable
from compllm.testing import Reply, ScriptedBackend
from compllm.types import (
    ComposePolicy,
    FinishReason,
    NodeResult,
    Query,
    SamplingParams,
    SubQuery,
)

QUERY = Query("Why and how?", id="q")
ONE = (("Why?", "Because."),)
TWO = (("Why?", "Because."), ("How?", "So."))


async def run(
    leaves: tuple[tuple[str, str | None], ...], policy: ComposePolicy, backend: ScriptedBackend
) -> list[str]:
    return [text async for text in compose(QUERY, leaves, backend, Aggregator(policy))]


@pytest.mark.parametrize(
    ("policy", "leaves", "is_asked"),
    [
        ("always", ONE, True),
        ("always", TWO, True),
        ("auto", ONE, False),
        ("auto", TWO, True),
        ("never", ONE, False),
        ("never", TWO, False),
        ("always", (("Why?", None),), False),
        ("auto", (("Why?", None), ("How?", "So.")), True),
    ],
)
async def test_the_policy_decides_whether_the_aggregator_is_asked(
    policy: ComposePolicy, leaves: tuple[tuple[str, str | None], ...], is_asked: bool
) -> None:
    backend = ScriptedBackend(Reply("composed"))
    texts = await run(leaves, policy, backend)
    assert len(backend.requests) == is_asked
    assert (texts == ["composed"]) is is_asked


async def test_the_answer_streams_as_it_is_written() -> None:
    gates = (asyncio.Event(), asyncio.Event())
    gates[0].set()
    backend = ScriptedBackend(Reply(("Because", " so."), piece_gates=gates))
    texts = compose(QUERY, TWO, backend, Aggregator())
    assert await anext(texts) == "Because"
    gates[1].set()
    assert await anext(texts) == " so."


async def test_the_aggregator_reads_the_query_and_the_leaves_alone() -> None:
    backend = ScriptedBackend(Reply("x"))
    await run(TWO, "auto", backend)
    text = backend.requests[0].text
    assert "Why and how?" in text
    assert "- Why? Because.\n- How? So." in text


async def test_the_querys_own_sampling_wins() -> None:
    backend = ScriptedBackend(Reply("x"))
    query = Query("Why?", id="q", sampling=SamplingParams(max_tokens=3, temperature=0.5))
    _ = [text async for text in compose(query, TWO, backend, Aggregator())]
    assert backend.requests[0].request.sampling == query.sampling


async def test_a_broken_answer_raises_after_what_was_said() -> None:
    backend = ScriptedBackend(Reply("Beca", error=BackendUnavailable("gone")))
    texts = compose(QUERY, TWO, backend, Aggregator())
    assert await anext(texts) == "Beca"
    with pytest.raises(BackendUnavailable):
        await anext(texts)


def test_joining_is_deterministic_and_leaves_out_what_is_missing() -> None:
    assert join(ONE) == "Because."
    assert join(TWO) == "Why? Because.\nHow? So."
    assert join((("Why?", None), ("How?", "So."))) == "How? So."
    assert join(ONE, is_whole=False) == "Why? Because."
    assert join((("Why?", None),)) == ""


@pytest.mark.parametrize(("policy", "told"), [("always", ["length"]), ("never", [])])
async def test_why_the_model_ended_is_told_where_one_wrote(
    policy: ComposePolicy, told: list[FinishReason]
) -> None:
    backend = ScriptedBackend(Reply("x", finish_reason="length"))
    ends: list[FinishReason] = []

    def ended(reason: FinishReason) -> None:
        ends.append(reason)

    _ = [each async for each in compose(QUERY, TWO, backend, Aggregator(policy), ended)]
    assert ends == told


def test_joined_answer_is_cut_where_a_leaf_was() -> None:
    lines = (SubQuery(1, "a?"), SubQuery(2, "b?", (1,)))

    def nodes(*reasons: FinishReason) -> list[NodeResult]:
        return [
            NodeResult(number, "base", "done", finish_reason=reason)
            for number, reason in enumerate(reasons, 1)
        ]

    assert joined_end(lines, nodes("stop", "length")) == "length"
    assert joined_end(lines, nodes("length", "stop")) == "stop"


async def test_an_answer_that_loops_ends_at_once_and_is_cut() -> None:
    pieces = ("the gold symbol; ",) * 30
    reply = Reply(pieces)
    backend = ScriptedBackend(reply)
    ends: list[str] = []
    leaves = (("What is the symbol of gold?", "Au"), ("What is gold?", "a metal"))
    texts = [
        text async for text in compose(Query("Gold?"), leaves, backend, Aggregator(), ends.append)
    ]
    assert "".join(texts) == "the gold symbol"
    assert ends == ["length"]
    assert backend.requests[0].outcome == "cancelled"


async def test_a_short_response_that_the_model_left_out_is_put_behind() -> None:
    leaves = (("How many?", "5"), ("Which metal?", "Pb"), ("What root?", "15"))
    backend = ScriptedBackend(Reply("Pb; 15"))
    texts = [text async for text in compose(QUERY, leaves, backend, Aggregator())]
    assert "".join(texts) == "Pb; 15; 5"


async def test_a_sentence_of_the_models_own_is_left() -> None:
    leaves = (("How many?", "4"), ("Which metal?", "Pb"))
    backend = ScriptedBackend(Reply("Four of them are made of lead."))
    texts = [text async for text in compose(QUERY, leaves, backend, Aggregator())]
    assert "".join(texts) == "Four of them are made of lead."
