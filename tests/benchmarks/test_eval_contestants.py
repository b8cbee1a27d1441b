"""The contestants on a scripted backend: what each one asks, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.accuracy import contestants, nodes, propagation
from benchmarks.accuracy.lab import Lab, role_name, with_adapters
from benchmarks.accuracy.records import (
    Composite,
    NodeItem,
    read_composites,
    read_facts,
    read_nodes,
    read_plans,
)
from benchmarks.accuracy.runner import Work
from evaluation_data import write_datasets
from path_parts import CATALOGUE, plan_reply, settings

from compllm.catalogue import Adapter
from compllm.errors import BackendError, ConfigError
from compllm.testing import HashingEncoder, Reply, ScriptedBackend

QUIET = Work(2, is_quiet=True)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_datasets(tmp_path / "data")


@pytest.fixture
def pair(data: Path) -> Composite:
    return read_composites(data / "p" / "test.jsonl")[0]


@pytest.fixture
def total(data: Path) -> Composite:
    return read_composites(data / "all" / "test.jsonl")[0]


def make_lab(tmp_path: Path, *replies: Reply, **overrides: object) -> tuple[Lab, ScriptedBackend]:
    backend = ScriptedBackend(*replies)
    config = settings(**overrides)
    adapters = {"chem": 7, "math": 8}
    encoder = HashingEncoder()
    lab = Lab(config, CATALOGUE, encoder, backend, adapters, "scripted", tmp_path / "store")
    return lab, backend


def known(**responses: str) -> list[Reply]:
    """A reply for each node by a piece of its question."""
    return [
        Reply(text, contains=f"user\n{question}", is_guided=False)
        for question, text in responses.items()
    ]


NODES = known(**{"What is the atomic number of iron": "26", "How many legs": "6"})
SUM = Reply("32", contains="user\nWhat is 26 plus 6?")
COMPOSE = Reply("26; 6", contains="Known facts")


async def answer(name: str, lab: Lab, record: Composite, **more: Any) -> dict[str, Any]:
    every = contestants.contestants(lab, more.get("shots", ()), more.get("two", ("chemistry",)))
    async with every[name].open(lab) as ask:
        return await ask(record)


def test_the_gold_parts_of_a_record(total: Composite) -> None:
    assert total.leaves == (3,)
    assert total.gold == {1: "26", 2: "6", 3: "32"}


async def test_comp_llm_keeps_its_plan_experts_and_responses(
    tmp_path: Path, pair: Composite
) -> None:
    lines = "1 | What is the atomic number of iron?\n2 | How many legs has an ant?"
    lab, _ = make_lab(tmp_path, plan_reply(lines), COMPOSE, *NODES)
    outcome = await answer("compllm-3", lab, pair)
    assert outcome["answer"] == "26; 6"
    assert outcome["parents"] == [[], []]
    assert outcome["responses"] == ["26", "6"]
    assert outcome["experts"][0] == "chemistry"
    assert outcome["error"] is None


def test_comp_llm_with_fewer_experts_leaves_the_rest_to_the_base(tmp_path: Path) -> None:
    lab, _ = make_lab(tmp_path)
    chemistry, mathematics = contestants.with_experts(lab, ("chemistry",)).experts
    assert chemistry.adapter_id == 7
    assert (mathematics.adapter_id, mathematics.system) == (None, CATALOGUE.base.system)
    with pytest.raises(ConfigError, match="astrology"):
        contestants.with_experts(lab, ("astrology",))


async def test_gold_routes_go_to_the_domains_that_have_an_expert(
    tmp_path: Path, total: Composite
) -> None:
    lab, backend = make_lab(tmp_path, SUM, *NODES)
    outcome = await answer("gold-routes", lab, total)
    assert outcome["answer"] == "32"
    assert outcome["experts"] == ["chemistry", "base", "mathematics"]
    (asked,) = backend.find("What is 26 plus 6?")
    assert asked.request.adapter_id == 8


async def test_gold_answers_leave_only_the_composing(tmp_path: Path, pair: Composite) -> None:
    lab, backend = make_lab(tmp_path, COMPOSE)
    outcome = await answer("gold-answers", lab, pair)
    assert outcome["answer"] == "26; 6"
    assert len(backend.requests) == 1
    assert outcome["responses"] == ["26", "6"]


async def test_all_nodes_are_facts_of_the_answer(tmp_path: Path, total: Composite) -> None:
    lines = (
        "1 | What is the atomic number of iron?\n2 | How many legs has an ant?\n"
        "3 <1,2> | What is #1 plus #2?"
    )
    final = Reply("all three", contains=f"user\n{total.question}")
    lab, backend = make_lab(tmp_path, plan_reply(lines), final, SUM, *NODES)
    assert (await answer("all-nodes", lab, total))["answer"] == "all three"
    (asked,) = backend.find(f"user\n{total.question}\n\nKnown facts")
    assert "- How many legs has an ant? 6" in asked.text
    assert "- What is #1 plus #2? 32" in asked.text


async def test_the_whole_query_is_routed_once(tmp_path: Path, pair: Composite) -> None:
    lab, backend = make_lab(tmp_path, Reply("26; 6"))
    outcome = await answer("direct", lab, pair)
    assert outcome["answer"] == "26; 6"
    assert len(backend.requests) == 1


async def test_a_failed_query_is_an_empty_answer_with_its_error(
    tmp_path: Path, pair: Composite
) -> None:
    lab, _ = make_lab(tmp_path, Reply(error=BackendError("refused")))
    outcome = await answer("direct", lab, pair)
    assert outcome["answer"] == ""
    assert "refused" in outcome["error"]


async def test_the_base_is_told_how_answers_are_joined(tmp_path: Path, pair: Composite) -> None:
    lab, backend = make_lab(tmp_path, Reply("no idea"))
    assert (await answer("base", lab, pair))["answer"] == "no idea"
    assert contestants.JOIN_HINT in backend.requests[0].text
    assert backend.requests[0].request.adapter_id is None


async def test_the_monolithic_adapter_reads_the_question_alone(
    tmp_path: Path, pair: Composite
) -> None:
    lab, backend = make_lab(tmp_path, Reply("26; 6"))
    assert "monolithic" not in contestants.contestants(lab, (), ("chemistry",))
    lab.adapters["monolithic"] = 99  # type: ignore[index]
    await answer("monolithic", lab, pair)
    assert backend.requests[0].request.adapter_id == 99
    assert "system" not in backend.requests[0].text


async def test_a_chain_of_thought_shows_worked_examples(
    tmp_path: Path, pair: Composite, total: Composite
) -> None:
    lab, backend = make_lab(tmp_path, Reply("It is 26. It is 6.\nAnswer: 26; 6"))
    outcome = await answer("base-cot", lab, pair, shots=(total,))
    assert outcome["answer"] == "26; 6"
    assert "What is 26 plus 6? 32\nAnswer: 32" in backend.requests[0].text
    with pytest.raises(ConfigError, match="needs examples"):
        await answer("base-cot", lab, pair)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a\nAnswer: 5", "5"), ("answer: 1\nANSWER : 2", "2"), ("first\nlast", "last"), ("", "")],
)
def test_the_final_answer_of_a_thought(text: str, expected: str) -> None:
    assert contestants.final(text) == expected


def test_joined_takes_the_leaves_alone() -> None:
    outcome = {"answer": "x", "parents": [[], [0], []], "responses": ["a", "b", "c"]}
    assert contestants.joined(outcome)["answer"] == "b; c"


async def test_one_wrong_parent_reaches_what_depends_on_it(tmp_path: Path, data: Path) -> None:
    records = read_composites(data / "all" / "test.jsonl")
    right = Reply("32", contains="26 plus 6")
    lab, _ = make_lab(tmp_path, right, Reply("99"))
    chosen, outcomes = await propagation.propagate(lab, records[:1] + records[1:], QUIET, 0)
    assert [record.id for record in chosen] == [record.id for record in records]
    first = outcomes[0]
    assert (first["right"], first["flipped"]) == ("32", "99")
    assert first["node"] in (1, 2)
    rows = propagation.propagation_rows(chosen[:1], outcomes[:1], 0)
    assert rows[0]["exact, right parent_%"] == 100.0
    assert rows[0]["exact, wrong parent_%"] == 0.0


def test_descendants_are_what_an_error_can_reach(total: Composite) -> None:
    assert propagation.descendants(total.plan, 1) == {3}
    assert propagation.descendants(total.plan, 3) == set()


def test_independent_nodes_have_no_parent_to_flip(pair: Composite) -> None:
    assert propagation.choose_flip(pair, propagation.answer_pool([pair]), 0) is None


async def test_nodes_are_answered_by_their_expert_and_by_the_base(
    tmp_path: Path, data: Path
) -> None:
    items = {"chemistry": read_nodes(data / "chemistry" / "test.jsonl")}
    lab, _ = make_lab(tmp_path, Reply("26", adapter_id=7), Reply("56"))
    answered = await nodes.answer_nodes(lab, items, QUIET)
    rows = nodes.domain_rows(answered, 0)
    assert [(row["model"], row["exact_%"]) for row in rows] == [("expert", 100), ("base", 0)]
    (by_kind,) = nodes.kind_rows(answered)
    assert by_kind == {
        "domain": "chemistry",
        "kind": "chemistry_kind",
        "questions": 1,
        "expert_%": 100.0,
        "base_%": 0.0,
    }


async def test_the_aggregator_is_scored_by_number_of_facts(tmp_path: Path, data: Path) -> None:
    facts = read_facts(data / "aggregator" / "test.jsonl")
    lab, _ = make_lab(tmp_path, Reply("They are 26 and 8."))
    (row,) = await nodes.aggregator_rows(lab, facts, QUIET, 0)
    assert (row["facts"], row["exact_%"], row["contains_%"]) == (2, 0, 100)


def test_given_adapters_take_the_places_of_their_names() -> None:
    engine = {"chem": 70, "math": 80, "generator": 5, "chemistry": 6, "aggregator": 9}
    catalogue = with_adapters(CATALOGUE, engine, ["generator", "chemistry", "aggregator"])
    assert catalogue.generator is not None
    assert catalogue.aggregator is not None
    assert (catalogue.generator.id, catalogue.aggregator.id) == (5, 9)
    assert catalogue.expert("chemistry").adapter_id == 6
    assert catalogue.expert("chemistry").system == ""
    assert catalogue.expert("mathematics").adapter_id == 80
    with pytest.raises(ConfigError, match="names adapter 'chem'"):
        with_adapters(CATALOGUE, {})


def test_the_adapter_of_a_role_is_the_pipelines_choice() -> None:
    default = Adapter("trained", 3, None)
    assert role_name("", None) == role_name("base", default) == ""
    assert role_name("", default) == "trained"
    assert role_name("other", default) == "other"


def test_records_that_are_none_are_named(tmp_path: Path, data: Path) -> None:
    assert [item.source for item in read_plans(data / "generator" / "test.jsonl")]
    path = tmp_path / "bad.jsonl"
    path.write_text('{"id": "a"}\n')
    with pytest.raises(ConfigError, match="line 1 is no record"):
        read_composites(path)
    with pytest.raises(ConfigError, match="make_datasets"):
        read_nodes(tmp_path / "absent.jsonl")


def test_an_item_without_parents_has_none(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"id": 1, "domain": "d", "kind": "k", "question": "q?", "answer": 5}\n')
    assert read_nodes(path) == [NodeItem("1", "d", "k", "q?", (), "5")]
