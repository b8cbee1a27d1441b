"""The Python face of the query graph: sub-queries in, ids out, exports."""

from __future__ import annotations

import subprocess
import sys

import networkx as nx
import pytest

from compllm.errors import CycleError, PlanError, UnknownNodeError
from compllm.graph import QueryGraph
from compllm.types import Bound, Plan, SubQuery

DIAMOND = Plan(
    (
        SubQuery(1, "What is the symbol of iron?"),
        SubQuery(2, "What is its atomic number?", (1,)),
        SubQuery(3, "What is its density?", (1,)),
        SubQuery(4, "What do #2 and #3 tell?", (2, 3)),
    )
)


def test_a_plan_becomes_a_graph():
    graph = QueryGraph.from_plan(DIAMOND)
    assert len(graph) == 4
    assert tuple(graph) == DIAMOND.sub_queries
    assert graph[3].text == "What is its density?"
    assert graph.levels == ((1,), (2, 3), (4,))
    assert graph.depth == 3
    assert graph.leaves == (4,)
    assert graph.children(1) == (2, 3)
    assert graph.ancestors(4) == (1, 2, 3)
    assert 4 in graph
    assert 5 not in graph


def test_an_empty_graph_is_finished():
    graph = QueryGraph()
    assert graph.is_finished
    assert graph.ready == graph.levels == graph.leaves == ()
    assert graph.depth == 0


def test_a_node_waits_for_all_its_parents():
    graph = QueryGraph.from_plan(DIAMOND)
    assert graph.ready == (1,)
    graph.start(1)
    assert graph.ready == ()
    assert graph.status(1) == "running"
    assert graph.done(1) == (2, 3)
    assert graph.done(3) == ()
    assert graph.status(4) == "waiting"
    assert graph.done(2) == (4,)
    assert graph.done(4) == ()
    assert graph.is_finished


def test_a_node_can_start_while_the_next_is_still_unknown():
    graph = QueryGraph()
    assert graph.add(SubQuery(1, "a"))
    graph.start(1)
    assert not graph.add(SubQuery(2, "b", (1,)))
    assert graph.done(1) == (2,)
    assert graph.add(SubQuery(3, "c", (1,)))
    assert graph.ready == (2, 3)


def test_a_failure_that_children_are_only_told_about_does_not_stop_them():
    graph = QueryGraph.from_plan(DIAMOND)
    graph.done(1)
    graph.done(2)
    assert graph.done(3) == (4,)


def test_remaining_path_grows_with_the_graph():
    graph = QueryGraph()
    graph.add(SubQuery(1, "a"), cost=2.0)
    assert graph.remaining_path(1) == 2.0
    graph.add(SubQuery(2, "b", (1,)), cost=3.0)
    assert graph.remaining_path(1) == 5.0
    assert graph.remaining_work == 5.0
    graph.done(1)
    assert graph.remaining_work == 3.0


def test_nodes_may_come_in_any_order_with_costs():
    graph = QueryGraph()
    graph.add_all([SubQuery(2, "b", (1,)), SubQuery(1, "a")], costs={1: 5.0})
    assert graph.levels == ((1,), (2,))
    assert graph.remaining_path(1) == 6.0


def test_a_plan_that_breaks_a_rule_leaves_the_graph_as_it_was():
    graph = QueryGraph(max_nodes=3)
    graph.add(SubQuery(1, "a"))
    with pytest.raises(CycleError, match="3 -> 2 -> 3") as caught:
        graph.add_all([SubQuery(2, "b", (3,)), SubQuery(3, "c", (2,))])
    assert caught.value.nodes == (3, 2)
    with pytest.raises(UnknownNodeError):
        graph.add(SubQuery(2, "b", (9,)))
    with pytest.raises(PlanError, match="node 1 is given twice"):
        graph.add(SubQuery(1, "again"))
    with pytest.raises(PlanError, match="more than the 3 allowed"):
        graph.add_all([SubQuery(node, "x") for node in range(2, 5)])
    assert tuple(graph) == (SubQuery(1, "a"),)


def test_ten_thousand_nodes_are_refused_by_the_default_bound():
    with pytest.raises(PlanError, match="10000 nodes, more than the 64 allowed"):
        QueryGraph.from_plan(Plan(tuple(SubQuery(node, "x") for node in range(1, 10_001))))


def test_bound_compares_the_graph_with_what_was_reached():
    graph = QueryGraph.from_plan(DIAMOND)
    times = {1: (0.0, 1.0), 2: (1.0, 3.0), 3: (1.0, 2.0), 4: (4.0, 5.0)}
    assert graph.bound(times) == Bound(ideal_speedup=5 / 4, reached_speedup=5 / 5)


def test_bound_without_times_is_one():
    assert QueryGraph.from_plan(DIAMOND).bound({}) == Bound(1.0, 1.0)
    assert QueryGraph.from_plan(DIAMOND).bound({1: (2.0, 2.0)}) == Bound(1.0, 1.0)


def test_bound_leaves_out_nodes_that_never_ran():
    bound = QueryGraph.from_plan(DIAMOND).bound({1: (0.0, 1.0), 2: (1.0, 2.0), 3: (1.0, 2.0)})
    assert bound == Bound(ideal_speedup=3 / 2, reached_speedup=3 / 2)


def test_bound_refuses_times_that_run_backwards_or_belong_to_nobody():
    graph = QueryGraph.from_plan(DIAMOND)
    with pytest.raises(ValueError, match=r"node 1 costs -1\.0"):
        graph.bound({1: (1.0, 0.0)})
    with pytest.raises(UnknownNodeError, match="there is no node 9"):
        graph.bound({9: (0.0, 1.0)})


def test_networkx_export_has_texts_states_and_edges():
    graph = QueryGraph.from_plan(DIAMOND)
    graph.done(1)
    exported = graph.to_networkx()
    assert nx.is_directed_acyclic_graph(exported)
    assert set(exported.edges) == {(1, 2), (1, 3), (2, 4), (3, 4)}
    assert exported.nodes[2] == {"text": "What is its atomic number?", "status": "ready"}


def test_mermaid_text_is_a_flow_chart():
    graph = QueryGraph.from_plan(Plan(DIAMOND.sub_queries[:2]))
    assert graph.to_mermaid({1: "chemistry", 2: "base"}).splitlines() == [
        "flowchart TD",
        '    n1["1 · chemistry<br/>What is the symbol of iron?"]',
        '    n2["2 · base<br/>What is its atomic number?"]',
        "    n1 --> n2",
    ]


def test_dot_text_is_a_digraph():
    graph = QueryGraph.from_plan(Plan(DIAMOND.sub_queries[:2]))
    assert graph.to_dot().splitlines() == [
        "digraph plan {",
        "    node [shape=box];",
        '    1 [label="1\\nWhat is the symbol of iron?"];',
        '    2 [label="2\\nWhat is its atomic number?"];',
        "    1 -> 2;",
        "}",
    ]


def test_text_of_a_model_cannot_end_a_label_or_become_markup():
    graph = QueryGraph.from_plan(Plan((SubQuery(1, 'a"]\nend <b>#1</b> \\"'),)))
    assert '["1<br/>a#quot;] end #lt;b#gt;#35;1#lt;/b#gt; \\#quot;"]' in graph.to_mermaid()
    assert 'label="1\\na\\"] end <b>#1</b> \\\\\\""' in graph.to_dot()


def test_networkx_stays_at_the_edge():
    code = "import sys, compllm.graph; assert 'networkx' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
