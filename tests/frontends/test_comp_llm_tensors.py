"""Tensors to a query and events to responses, without Triton."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import model_config_pb2

from compllm import paths
from compllm.config import LimitsConfig
from compllm.errors import QueryError
from compllm.frontends.triton.comp_llm_tensors import (
    INPUTS,
    OUTPUTS,
    QueryRequest,
    QueryResponse,
    outputs,
    parse,
    respond,
)
from compllm.types import (
    Answer,
    AnswerDelta,
    AnswerFinished,
    Bound,
    Event,
    NodeResult,
    Plan,
    PlanFinished,
    Query,
    QueryUsage,
    Route,
    SamplingParams,
    SubQuery,
    SubQueryPlanned,
    Timings,
    Usage,
)

LIMITS = LimitsConfig()
IRON, NEON = SubQuery(1, "What is iron?"), SubQuery(2, "What is neon?")
CHEMISTRY = Route("chemistry", 0.9, is_fallback=False)
BASE = Route("base", 0.1, is_fallback=True)


def _tensors(text: str | bytes = "What is iron?", **more: Any) -> dict[str, Any]:
    raw = text.encode() if isinstance(text, str) else text
    scalars = {name: np.array([[value]]) for name, value in more.items()}
    return {"text_input": np.array([[raw]], np.object_), **scalars}


def _parse(**more: Any) -> QueryRequest:
    return parse(_tensors(**more), {}, LIMITS, "q")


def test_repository_declares_the_contract() -> None:
    path = paths.resource_dir("triton_repo") / "comp_llm" / "config.pbtxt"
    config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    assert tuple(each.name for each in config.input) == INPUTS
    assert tuple(each.name for each in config.output) == OUTPUTS
    assert [each.name for each in config.input if not each.optional] == ["text_input"]
    assert config.model_transaction_policy.decoupled


def test_every_input_reaches_the_query() -> None:
    request = _parse(
        max_tokens=7, temperature=0.5, top_p=0.25, seed=3, stream=True, deadline_ms=1500
    )
    sampling = SamplingParams(max_tokens=7, temperature=0.5, top_p=0.25, seed=3)
    assert request == QueryRequest(Query("What is iron?", "q", 1.5, sampling), is_streamed=True)


def test_what_is_left_out_is_greedy_unstreamed_and_as_long_as_allowed() -> None:
    sampling = SamplingParams(max_tokens=LIMITS.max_answer_tokens)
    assert _parse() == QueryRequest(Query("What is iron?", "q", None, sampling))


def test_top_p_of_0_is_taken_as_it_is() -> None:
    assert _parse(top_p=0.0).query.sampling.top_p == 0.0


def test_a_seed_that_is_left_out_is_none() -> None:
    assert _parse(temperature=1.0).query.sampling.seed is None
    assert _parse(temperature=1.0, seed=0).query.sampling.seed == 0


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("temperature", -0.5, "temperature is -0.5, it must be 0"),
        ("temperature", float("nan"), "temperature is nan"),
        ("temperature", float("inf"), "temperature is inf"),
        ("top_p", 1.5, r"top_p is 1.5, it must be from 0 \(the likeliest token alone\) to 1"),
        ("top_p", float("nan"), "top_p is nan"),
        ("max_tokens", 0, "max_tokens is 0, allowed are 1 to 192"),
        ("max_tokens", 193, r"max_tokens is 193.*limits\.max_answer_tokens"),
        ("deadline_ms", 0, "deadline_ms is 0, allowed are 1 to 86400000"),
        ("deadline_ms", -5, "deadline_ms is -5"),
        ("seed", [1, 2], "seed has 2 values: it takes one"),
        ("text", b"\xff\xfe", "text_input is not UTF-8"),
    ],
)
def test_bad_value_is_named_with_what_is_allowed(name: str, value: Any, said: str) -> None:
    with pytest.raises(QueryError, match=said):
        _parse(**{name: value})


def test_question_must_be_there() -> None:
    with pytest.raises(QueryError, match="text_input is missing"):
        parse({}, {}, LIMITS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("max_token", "unknown input 'max_token': did you mean 'max_tokens'"),
        ("beam_width", "unknown input 'beam_width': there are text_input, max_tokens"),
    ],
)
def test_unknown_input_is_refused(name: str, said: str) -> None:
    with pytest.raises(QueryError, match=said):
        parse(_tensors(), {name: 3}, LIMITS)


def test_parameters_that_ask_for_nothing_or_for_triton_are_left_alone() -> None:
    parameters = {"bad_words": "", "id": "a", "priority": 1, "triton_final_response": True}
    assert parse(_tensors(), parameters, LIMITS, "q") == _parse()


@given(st.binary(max_size=50))
def test_any_bytes_are_a_question_or_an_error(raw: bytes) -> None:
    try:
        text = parse(_tensors(raw), {}, LIMITS).query.text
    except QueryError:
        return
    assert text.encode() == raw


def _answer(*nodes: NodeResult, **more: Any) -> Answer:
    given: dict[str, Any] = {
        "query": Query("?"),
        "text": "Fe and Ne",
        "plan": Plan((IRON, NEON)),
        "routes": (CHEMISTRY, BASE),
        "nodes": nodes or tuple(NodeResult(k, "chemistry", "done", "yes") for k in (1, 2)),
        "timings": Timings(),
        "bound": Bound(1.5, 1.25),
    } | more
    return Answer(**given)


async def _responses(*events: Event, is_streamed: bool = True) -> list[QueryResponse]:
    async def stream() -> AsyncIterator[Event]:
        for event in events:
            yield event

    request = QueryRequest(Query("?"), is_streamed)
    return [each async for each in respond(stream(), request)]


async def _last(answer: Answer) -> QueryResponse:
    return (await _responses(AnswerFinished(answer)))[-1]


async def test_stream_tells_the_plan_then_the_text_then_the_end() -> None:
    plan, first, second, last = await _responses(
        SubQueryPlanned(IRON, CHEMISTRY),
        SubQueryPlanned(NEON, BASE),
        PlanFinished(Plan((IRON, NEON))),
        AnswerDelta("Fe"),
        AnswerDelta(" and Ne"),
        AnswerFinished(_answer()),
    )
    assert plan.plan is not None
    assert plan.plan["experts"] == ["chemistry", "base"]
    assert (first, second) == (QueryResponse("Fe"), QueryResponse(" and Ne"))
    assert (last.text, last.plan, last.finish_reason) == ("", None, "stop")
    assert [each.is_final for each in (plan, first, second, last)] == [False, False, False, True]


async def test_plan_waits_for_its_routes() -> None:
    given = PlanFinished(Plan((IRON, NEON)))
    events = (given, SubQueryPlanned(IRON, CHEMISTRY), SubQueryPlanned(NEON, BASE))
    (response,) = await _responses(*events)
    assert response.plan is not None
    assert len(response.plan["lines"]) == 2


async def test_fallback_plan_replaces_what_was_planned_before() -> None:
    whole = SubQuery(1, "everything?")
    (response,) = await _responses(
        SubQueryPlanned(IRON, CHEMISTRY),
        SubQueryPlanned(NEON, CHEMISTRY),
        PlanFinished(Plan((whole,), is_fallback=True, reason="a cycle")),
        SubQueryPlanned(whole, BASE),
    )
    assert response.plan is not None
    assert (response.plan["lines"], response.plan["experts"]) == (["1 | everything?"], ["base"])


async def test_without_stream_everything_comes_in_one_response() -> None:
    (response,) = await _responses(
        SubQueryPlanned(IRON, CHEMISTRY),
        PlanFinished(Plan((IRON,))),
        AnswerDelta("Fe"),
        AnswerFinished(_answer()),
        is_streamed=False,
    )
    assert (response.text, response.is_final) == ("Fe and Ne", True)
    assert response.plan is not None
    assert response.stats is not None
    sure = {"confidence", "is_low_confidence"}
    assert set(response.stats) == {"nodes", "timings", "bound", "usage"} | sure


async def test_usage_is_the_sums_of_all_requests() -> None:
    last = await _last(_answer(usage=QueryUsage(3, 40, 9, plan=Usage(30, 7))))
    assert last.stats is not None
    assert last.stats["usage"] == {
        "num_requests": 3,
        "num_input_tokens": 40,
        "num_output_tokens": 9,
    }


async def test_finish_reason_is_the_answers() -> None:
    last = await _last(_answer(finish_reason="length"))
    assert last.finish_reason == "length"
    assert last.stats is not None
    assert "finish_reason" not in last.stats


async def test_partial_answer_ends_in_error_and_says_why() -> None:
    error = "the deadline of 1 s is over"
    last = await _last(_answer(is_partial=True, error=error, finish_reason="error"))
    assert last.finish_reason == "error"
    assert last.stats is not None
    assert last.stats["error"] == "the deadline of 1 s is over"


def test_outputs_are_texts_of_one_element() -> None:
    arrays = outputs(QueryResponse("é", {"num_nodes": 1}, "stop", {"usage": {}}))
    assert set(arrays) == set(OUTPUTS)
    assert {array.shape for array in arrays.values()} == {(1, 1)}
    assert arrays["text_output"][0, 0].decode() == "é"
    assert json.loads(arrays["plan_json"][0, 0]) == {"num_nodes": 1}


def test_text_is_in_every_response() -> None:
    assert set(outputs(QueryResponse(plan={}))) == {"text_output", "plan_json"}
    assert set(outputs(QueryResponse("a"))) == {"text_output"}
