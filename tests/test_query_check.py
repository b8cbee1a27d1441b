"""A caller's query: every value of a wrong type or size is refused by its name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from path_parts import make_llm, node_reply

from compllm.catalogue import load_catalogue
from compllm.config import LimitsConfig, load_config
from compllm.errors import ConfigError, PlanError, QueryError
from compllm.pipeline import CompLLM
from compllm.plan import direct_plan, parse_plan
from compllm.query_check import checked
from compllm.testing import ScriptedBackend
from compllm.types import Plan, Query, SamplingParams, SubQuery

LIMITS = LimitsConfig()


def sampled(**values: Any) -> Query:
    return Query("why?", sampling=SamplingParams(**values))


def wrong(**values: Any) -> Query:
    return Query(**{"text": "why?", **values})


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (None, "the question is None, expected text"),
        (b"why?", r"the question is b'why\?' \(bytes\)"),
        (["why?"], r"\(list\), expected text"),
        (wrong(text=None), "the text of the Query is None"),
        (wrong(text=7), r"the text of the Query is 7 \(int\)"),
        (wrong(id=7), r"the id of the Query is 7 \(int\)"),
        (wrong(id="\ud800"), "the id of the Query"),
        (wrong(deadline_s="5"), r"deadline_s is '5' \(str\), expected seconds"),
        (wrong(deadline_s=True), "deadline_s is True"),
        (wrong(sampling=None), "the sampling is None, expected SamplingParams"),
        (wrong(sampling={"seed": 1}), r"the sampling is .* \(dict\)"),
        (sampled(max_tokens="9"), r"sampling.max_tokens is '9' \(str\), expected an integer"),
        (sampled(max_tokens=0), "sampling.max_tokens is 0"),
        (sampled(max_tokens=2**31), "sampling.max_tokens is 2147483648"),
        (sampled(min_tokens=-1), "sampling.min_tokens is -1"),
        (sampled(top_k=1.5), "sampling.top_k is 1.5"),
        (sampled(seed="0"), "sampling.seed is .*, expected an integer, or None"),
        (sampled(temperature="warm"), r"sampling.temperature is 'warm' \(str\)"),
        (sampled(temperature=-0.1), "sampling.temperature is -0.1"),
        (sampled(temperature=float("nan")), "sampling.temperature is nan"),
        (sampled(top_p=-0.1), "sampling.top_p is -0.1.*from 0"),
        (sampled(repetition_penalty=0), "sampling.repetition_penalty is 0"),
        (sampled(stop="END"), r"sampling.stop is 'END' \(str\), expected a tuple"),
        (sampled(stop=["END"]), r"\(list\), expected a tuple"),
        (sampled(stop=(1,)), "sampling.stop is"),
    ],
)
def test_a_wrong_value_is_refused_by_name(query: object, says: str) -> None:
    with pytest.raises(QueryError, match=says):
        checked(query, LIMITS)


def test_a_long_value_is_shown_short() -> None:
    with pytest.raises(QueryError) as caught:
        checked(list(range(10_000)), LIMITS)
    assert len(str(caught.value)) < 150


def test_numbers_of_numpy_are_numbers() -> None:
    query = Query(
        " why? ",
        deadline_s=np.float32(2),
        sampling=SamplingParams(max_tokens=np.int64(3), temperature=np.float32(0.5)),  # type: ignore[arg-type]
    )
    found = checked(query, LIMITS)
    assert found.text == "why?"
    assert found.id
    assert (found.deadline_s, found.sampling.max_tokens) == (2, 3)


@pytest.mark.parametrize("query", [None, 7, b"why?", Query(None)])  # type: ignore[arg-type]
async def test_every_call_refuses_what_is_no_question(query: Any) -> None:
    backend = ScriptedBackend()
    async with make_llm(backend) as llm:
        with pytest.raises(QueryError, match="expected text"):
            await llm.ask(query)
        with pytest.raises(QueryError, match="expected text"):
            await llm.plan(query)
        with pytest.raises(QueryError, match="expected text"):
            await anext(llm.stream(query))
    assert not backend.requests


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ("1 | a?", "the plan is a str, expected a Plan"),
        ((SubQuery(1, "a?"),), "the plan is a tuple"),
        (Plan(None), "the sub-queries are a NoneType"),  # type: ignore[arg-type]
        (Plan(("a?",)), "a sub-query is a str"),  # type: ignore[arg-type]
        (Plan((SubQuery("1", "a?"),)), "an id"),  # type: ignore[arg-type]
        (Plan((SubQuery(1, None),)), "a text"),  # type: ignore[arg-type]
        (Plan((SubQuery(1, "a?", 1),)), "parents"),  # type: ignore[arg-type]
    ],
)
async def test_a_plan_of_other_types_is_a_plan_error(plan: Any, says: str) -> None:
    backend = ScriptedBackend()
    async with make_llm(backend) as llm:
        with pytest.raises(PlanError, match=says):
            await llm.ask("why?", plan=plan)
    assert not backend.requests


@pytest.mark.parametrize("text", [None, b"1 | a?"])
def test_a_plan_text_of_another_type_is_a_plan_error(text: Any) -> None:
    with pytest.raises(PlanError, match=r"the plan is a \w+, expected text"):
        parse_plan(text)


async def test_settings_of_another_type_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"config is a str: see compllm\.load_config"):
        await CompLLM.connect("127.0.0.1:8001")  # type: ignore[arg-type]


def test_files_are_named_by_text_as_well_as_by_a_path(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[limits]\nmax_nodes = 3\n")
    assert load_config(str(file), environ={}).limits.max_nodes == 3
    shipped = load_catalogue()
    assert load_catalogue(str(shipped.path)) == shipped


async def test_a_question_may_be_sent_whole_whatever_its_form() -> None:
    """The direct plan keeps its mark, and what holds for the lines of a plan does not hold for it:
    a question has line ends and more characters than a line may have."""
    question = "What is the atomic number of iron?\n" + "Really. " * 200
    backend = ScriptedBackend(node_reply(question.strip(), "26"))
    async with make_llm(backend) as llm:
        answer = await llm.ask(question, plan=direct_plan(question.strip()))
    assert (answer.text, answer.plan) == ("26", direct_plan(question.strip()))
    assert len(backend.requests) == 1
