"""The compiled core against oracles: graphlib, networkx, and models of a few lines of Python."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)

import compllm
from compllm import _core
from compllm.errors import CycleError, PlanError, UnknownNodeError

BIG = 1_000_000
Dag = dict[int, tuple[int, ...]]  # node to its parents
oracle = settings(deadline=None, max_examples=100)


@st.composite
def dags(draw: st.DrawFn, max_nodes: int = 12) -> Dag:
    """Parents before children, under ids that are neither dense nor rising."""
    ids = draw(st.lists(st.integers(-(2**40), 2**40), max_size=max_nodes, unique=True))
    return {
        node: tuple(draw(st.lists(st.sampled_from(ids[:i]), unique=True)) if i else ())
        for i, node in enumerate(ids)
    }


@st.composite
def digraphs(draw: st.DrawFn, max_nodes: int = 8) -> Dag:
    """Any edges, cycles and loops among them."""
    ids = list(range(draw(st.integers(1, max_nodes))))
    return {node: tuple(draw(st.lists(st.sampled_from(ids), unique=True))) for node in ids}


def grown(dag: Dag, costs: dict[int, float] | None = None) -> _core.QueryGraph:
    graph = _core.QueryGraph(BIG, BIG)
    for node, parents in dag.items():
        graph.add_node(node, parents, costs[node] if costs else 1.0)
    return graph


def built(dag: Dag) -> _core.QueryGraph:
    return _core.QueryGraph.build(list(dag), list(dag.values()), [1.0] * len(dag), BIG, BIG)


def to_networkx(dag: Dag) -> nx.DiGraph:
    graph = nx.DiGraph()
    graph.add_nodes_from(dag)
    graph.add_edges_from((parent, node) for node, parents in dag.items() for parent in parents)
    return graph


def longest_path(dag: Dag, costs: dict[int, float], node: int) -> float:
    """By trying every path."""
    children = [child for child, parents in dag.items() if node in parents]
    return costs[node] + max((longest_path(dag, costs, child) for child in children), default=0.0)


@oracle
@given(dags(), st.randoms(use_true_random=False))
def test_nodes_become_ready_exactly_when_graphlib_says_so(dag, random):
    graph, sorter = grown(dag), graphlib.TopologicalSorter(dag)
    sorter.prepare()
    ready = set(graph.ready())
    assert ready == set(sorter.get_ready())
    while ready:
        node = random.choice(sorted(ready))
        ready.remove(node)
        graph.start(node)
        newly_ready = graph.done(node)
        sorter.done(node)
        assert newly_ready == sorted(sorter.get_ready())
        ready.update(newly_ready)
    assert graph.is_finished
    assert not sorter.is_active()


@oracle
@given(digraphs())
def test_a_cycle_is_found_exactly_when_networkx_finds_one(dag):
    expected = to_networkx(dag)
    if nx.is_directed_acyclic_graph(expected):
        assert sum(map(len, built(dag).levels())) == len(dag)
        return
    with pytest.raises(CycleError) as caught:
        built(dag)
    nodes = caught.value.nodes
    assert len(set(nodes)) == len(nodes)
    assert all(expected.has_edge(*edge) for edge in zip(nodes, nodes[1:] + nodes[:1], strict=True))


@oracle
@given(dags(max_nodes=9), st.data())
def test_remaining_paths_and_bound_equal_brute_force_over_all_paths(dag, data):
    costs = {node: data.draw(st.integers(0, 100)) for node in dag}
    paths = {node: longest_path(dag, costs, node) for node in dag}
    for graph in (grown(dag, costs), built(dag)):
        bound = graph.bound(costs)
        assert bound.num_nodes == len(dag)
        assert bound.total_cost == sum(costs.values())
        assert bound.longest_path == max(paths.values(), default=0)
        assert bound.depth == (nx.dag_longest_path_length(to_networkx(dag)) + 1 if dag else 0)
    graph = grown(dag, costs)
    assert {node: graph.remaining_path(node) for node in dag} == paths


@oracle
@given(dags())
def test_structure_equals_networkx_however_the_graph_was_made(dag):
    expected = to_networkx(dag)
    shuffled = dict(sorted(dag.items()))
    for graph in (grown(dag), built(dag), built(shuffled)):
        assert graph.levels() == [sorted(g) for g in nx.topological_generations(expected)]
        assert graph.leaves() == sorted(n for n in expected if expected.out_degree(n) == 0)
        for node in dag:
            assert graph.children(node) == sorted(expected.successors(node))
            assert graph.ancestors(node) == sorted(nx.ancestors(expected, node))


class GraphMachine(RuleBasedStateMachine):
    """A graph that grows and runs in any order, with a model that computes all anew."""

    def __init__(self) -> None:
        super().__init__()
        self.graph = _core.QueryGraph(BIG, BIG)
        self.parents: dict[int, set[int]] = {}
        self.costs: dict[int, float] = {}
        self.states: dict[int, str] = {}

    def settle(self) -> None:
        """The states that follow from those of the parents."""
        for node in nx.topological_sort(to_networkx(self.parents)):
            above = {self.states[parent] for parent in self.parents[node]}
            if self.states[node] in ("waiting", "ready"):
                self.states[node] = "ready" if above <= {"done"} else "waiting"

    def nodes(self, *states: str) -> list[int]:
        return [node for node, state in self.states.items() if state in states]

    @rule(data=st.data(), cost=st.integers(0, 9))
    def add_node(self, data, cost):
        node = len(self.parents)
        some = st.lists(st.sampled_from(range(node)), unique=True) if node else st.just([])
        parents = data.draw(some)
        is_ready = self.graph.add_node(node, parents, cost)
        self.parents[node], self.costs[node] = set(parents), cost
        self.states[node] = "waiting"
        self.settle()
        assert is_ready == (self.states[node] == "ready")

    @precondition(lambda self: self.nodes("ready"))
    @rule(data=st.data())
    def start(self, data):
        node = data.draw(st.sampled_from(self.nodes("ready")))
        self.graph.start(node)
        self.states[node] = "running"

    @precondition(lambda self: self.nodes("ready", "running"))
    @rule(data=st.data())
    def done(self, data):
        node = data.draw(st.sampled_from(self.nodes("ready", "running")))
        before = dict(self.states)
        self.states[node] = "done"
        self.settle()
        changed = [n for n in self.states if n != node and self.states[n] != before[n]]
        assert self.graph.done(node) == changed

    @invariant()
    def agrees(self):
        assert {node: self.graph.state(node) for node in self.states} == self.states
        assert self.graph.ready() == self.nodes("ready")
        left = self.nodes("waiting", "ready", "running")
        assert self.graph.is_finished == (not left)
        assert self.graph.remaining_work == sum(self.costs[node] for node in left)
        dag = to_networkx(self.parents)
        assert self.graph.levels() == [sorted(g) for g in nx.topological_generations(dag)]
        expected: dict[int, float] = {}
        for node in reversed(list(nx.topological_sort(dag))):
            below = max((expected[child] for child in dag.successors(node)), default=0)
            expected[node] = self.costs[node] + below
        assert {node: self.graph.remaining_path(node) for node in self.parents} == expected


TestGraphMachine = GraphMachine.TestCase
TestGraphMachine.settings = settings(deadline=None, max_examples=40, stateful_step_count=30)


def test_an_unknown_parent_is_named_and_nothing_is_added():
    graph = grown({1: ()})
    with pytest.raises(UnknownNodeError, match="node 2 depends on node 9, which is not there") as e:
        graph.add_node(2, [1, 9])
    assert e.value.node_id == 2
    assert graph.levels() == [[1]]
    assert graph.children(1) == []


@pytest.mark.parametrize(
    ("ids", "parents", "error"),
    [
        ([2, 3, 2], [[], [], []], "node 2 is given twice"),
        ([1], [[]], "node 1 is given twice"),
        ([2], [[1, 1]], "node 2 names its parent 1 twice"),
        ([2, 3], [[], [2, 2]], "node 3 names its parent 2 twice"),
        ([2, 3, 4, 5], [[1], [2], [3], [1]], "would have 5 nodes, more than the 4 allowed"),
        ([2, 3, 4], [[1], [2], [3]], "node 4 lies at depth 4, deeper than the 3 allowed"),
    ],
)
def test_a_batch_that_breaks_a_rule_changes_nothing(ids, parents, error):
    graph = _core.QueryGraph(4, 3)
    graph.add_node(1)
    with pytest.raises(PlanError, match=error):
        graph.add_nodes(ids, parents, [1.0] * len(ids))
    assert graph.levels() == [[1]]


def test_bounds_hold_for_single_nodes_too():
    graph = _core.QueryGraph(3, 2)
    graph.add_node(1)
    graph.add_node(2, [1])
    with pytest.raises(PlanError, match="node 3 lies at depth 3"):
        graph.add_node(3, [2])
    graph.add_node(3)
    assert graph.levels() == [[1, 3], [2]]
    with pytest.raises(PlanError, match="more than the 3 allowed"):
        graph.add_node(4)


@pytest.mark.parametrize("verb", ["start", "done"])
def test_a_step_out_of_order_is_an_error(verb):
    graph = grown({1: (), 2: (1,)})
    with pytest.raises(RuntimeError, match="node 2 is waiting"):
        getattr(graph, verb)(2)
    with pytest.raises(UnknownNodeError, match="there is no node 7"):
        getattr(graph, verb)(7)


@pytest.mark.parametrize("cost", [-1.0, float("nan"), float("inf")])
def test_a_cost_that_is_no_cost_is_refused(cost):
    graph = grown({1: ()})
    with pytest.raises(ValueError, match="a cost is finite and not negative"):
        graph.add_node(2, (), cost)
    with pytest.raises(ValueError, match="a cost is finite and not negative"):
        graph.bound({1: cost})


def test_a_long_cycle_is_carried_whole_but_named_in_short():
    num = 1000
    with pytest.raises(CycleError) as caught:
        built({node: ((node + 1) % num,) for node in range(num)})
    assert sorted(caught.value.nodes) == list(range(num))
    assert len(str(caught.value)) < 200


def test_reading_paths_of_a_long_chain_while_it_grows_stays_right():
    graph = _core.QueryGraph(BIG, BIG)
    for node in range(500):
        graph.add_node(node, [node - 1] if node else [])
        assert graph.remaining_path(0) == node + 1
    assert graph.depth == 500


@pytest.mark.slow
def test_the_stub_agrees_with_the_module(tmp_path: Path):
    # pybind11's metaclass and enum capsule are not for users of the module.
    allowed = tmp_path / "allowed"
    allowed.write_text(
        r"compllm\._core\.(QueryGraph|AdmissionQueue|StructuralBound|GraphSpec|EngineModel|HostModel"
        r"|EngineUse|RequestTrace|Simulated)(\.__init__)?"
        "\n"
        r"compllm\._core\.\w+\.__pybind11_native_enum__"
        "\n"
    )
    command = [sys.executable, "-m", "mypy.stubtest", "compllm._core", "--allowlist", str(allowed)]
    ended = subprocess.run(
        [*command, "--ignore-unused-allowlist"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_stub_names_the_parameters_of_the_module():
    # Stubtest cannot see the signatures of compiled functions; pybind11 writes them in docstrings.
    stub = ast.parse(Path(compllm.__file__).with_name("_core.pyi").read_text())
    num_checked = 0
    for cls in (node for node in stub.body if isinstance(node, ast.ClassDef)):
        for function in (node for node in cls.body if isinstance(node, ast.FunctionDef)):
            member = getattr(getattr(_core, cls.name), function.name)
            if isinstance(member, property) or function.name == "__init__":
                continue
            names = [arg.arg for arg in function.args.args]
            signatures = re.findall(rf"{function.name}\((.*)\) ->", member.__doc__)
            assert names in [re.findall(r"(\w+): ", signature) for signature in signatures]
            num_checked += 1
    assert num_checked > 20
