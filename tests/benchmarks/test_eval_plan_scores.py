"""Scores of plans: graphs by place, texts by meaning, constants beside them."""

from __future__ import annotations

import pytest
from benchmarks.accuracy import plans
from benchmarks.accuracy.plans import Graph, meaning
from benchmarks.accuracy.records import plan_of
from hypothesis import given
from hypothesis import strategies as st

JOIN = Graph(3, frozenset({(1, 3), (2, 3)}))
CHAIN = Graph(3, frozenset({(1, 2), (2, 3)}))
PAIR = Graph(2, frozenset())


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("What is iron's atomic number?", "What is the atomic number of iron?"),
        (
            "What is the human heart's number of chambers?",
            "what is the number of chambers of the human heart",
        ),
        ("What's the symbol of gold?", "What is the symbol of gold"),
        ("How many legs do the ants' queens have?", "How many legs do queens of ants have?"),
        ("What is #1 plus iron's atomic number?", "What is #1 plus the atomic number of iron?"),
        ("What is the square of #1's double?", "What is the square of the double of #1?"),
        ("Is IRON a metal", "is iron a metal?"),
        ("What is iron\u2019s symbol?", "What is the symbol of iron?"),
    ],
)
def test_the_same_meaning(text: str, same: str) -> None:
    assert meaning(text) == meaning(same)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("What is #1 minus #2?", "What is #2 minus #1?"),
        ("What is the symbol of iron?", "What is the symbol of gold?"),
        ("What is 3.5 plus 1?", "What is 35 plus 1?"),
        ("Is #1 larger?", "Is #1 smaller?"),
    ],
)
def test_another_meaning(text: str, other: str) -> None:
    assert meaning(text) != meaning(other)


@given(st.text(alphabet="ab's of#1?", max_size=40))
def test_case_and_closing_punctuation_never_matter(text: str) -> None:
    assert meaning(f" {text.upper()}?") == meaning(text)


def test_a_graph_is_scored_by_place() -> None:
    score = plans.score_graph(CHAIN, JOIN)
    assert not score.is_exact
    assert (score.num_common_nodes, score.num_common_edges) == (3, 1)
    assert plans.edge_f1([score]) == pytest.approx(0.5)
    assert plans.same_count([score]) == 1
    assert plans.score_graph(JOIN, JOIN).is_exact


def test_f1_is_pooled_over_records() -> None:
    scores = [plans.score_graph(JOIN, JOIN), plans.score_graph(PAIR, CHAIN)]
    assert plans.edge_f1(scores) == pytest.approx(2 * 2 / (2 + 4))
    assert plans.node_f1(scores) == pytest.approx(2 * 5 / (5 + 6))
    assert plans.edge_f1([plans.score_graph(PAIR, PAIR)]) == 1


def test_meaning_of_a_plan_needs_its_graph_too() -> None:
    gold = plan_of(["What is the symbol of iron?", "Is #1 long?"], [[], [0]])
    ours = plan_of(["What is iron's symbol?", "is #1 long"], [[], [0]])
    flat = plan_of(["What is iron's symbol?", "is #1 long"], [[], []])
    assert plans.is_same_meaning(ours, gold)
    assert not plans.is_same_text(ours, gold)
    assert not plans.is_same_meaning(flat, gold)
    assert plans.num_common_texts(flat, gold) == 2


def test_constants_are_every_small_graph_once() -> None:
    graphs = list(plans.constant_graphs())
    assert len(graphs) == len(set(graphs)) == 1 + 2 + 8 + 64
    assert JOIN in graphs


def test_the_best_constant_is_found_for_each_measure() -> None:
    best = plans.best_constants([JOIN, JOIN, PAIR])
    assert best["graph exact"] == (pytest.approx(2 / 3), JOIN)
    assert best["node count"][0] == pytest.approx(2 / 3)
    assert str(best["edge F1"][1]) == "1, 2, 3 <1,2>"
