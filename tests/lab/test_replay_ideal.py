import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from replay_parts import PROFILE

from compllm.lab.engine_profile import EngineProfile
from compllm.lab.replay.ideal import (
    Load,
    ideal,
    sequential_ms,
    structural_speedup,
)
from compllm.types import ANSWER_NODE, PLAN_NODE

# Steps of any size alike, prefill for nothing: only the structure counts.
FLAT = EngineProfile("flat", ((0, 10.0), (1, 10.0), (64, 10.0)), 0.0, max_num_tokens=4096)


def load(new: int, *parents: int, prompt: int = 1, line: int = 0) -> Load:
    return Load(prompt, new, parents, line)


def test_one_node_takes_its_prefill_and_its_steps() -> None:
    node = load(11, prompt=20)
    # 20 tokens of prefill give the first of 11 tokens.
    assert ideal({1: node}, PROFILE).total_ms == node.alone_ms(PROFILE) == 20 * 2 + 10 * 10


def test_a_chain_is_no_faster_than_one_after_another() -> None:
    loads = {1: load(8, prompt=9), 2: load(8, 1, prompt=9), 3: load(8, 2, prompt=9)}
    assert ideal(loads, PROFILE).total_ms == pytest.approx(sequential_ms(loads.values(), PROFILE))
    assert structural_speedup(loads) == 1.0


def test_two_at_once_take_steps_of_two() -> None:
    loads = {1: load(11), 2: load(11)}
    assert ideal(loads, PROFILE).total_ms == 2 * 2 + 10 * 12
    assert structural_speedup(loads) == 2.0


def test_prefill_stands_in_the_way_of_neighbours() -> None:
    # Node 2 is there from the first step; 3 joins when 1 has ended, and 2 decodes beside.
    loads = {1: load(1), 2: load(30), 3: load(1, 1, prompt=50)}
    without = {1: load(1), 2: load(30)}
    assert ideal(loads, PROFILE).total_ms == pytest.approx(
        ideal(without, PROFILE).total_ms + 50 * 2
    )


def test_nodes_wait_for_their_line_and_the_answer_for_everything() -> None:
    plan, answer = load(20), load(10, PLAN_NODE, 1)
    loads = {PLAN_NODE: plan, 1: load(10, line=5), ANSWER_NODE: answer}
    assert ideal(loads, FLAT).total_ms == (20 + 10) * 10.0
    late = {PLAN_NODE: plan, 1: load(10, line=20), ANSWER_NODE: answer}
    assert ideal(late, FLAT).total_ms == (20 + 10 + 10) * 10.0


def test_the_answers_first_token_ends_its_prefill() -> None:
    loads = {1: load(11), ANSWER_NODE: load(4, 1, prompt=20)}
    both = ideal(loads, PROFILE)
    assert both.first_token_ms == ideal({1: load(11)}, PROFILE).total_ms + 20 * 2
    assert both.total_ms == both.first_token_ms + 3 * PROFILE.step_time_ms(1)
    assert ideal({1: load(11)}, PROFILE).ttft_of_total == 1.0  # the leaves are the answer


def test_a_long_prompt_takes_several_steps() -> None:
    profile = EngineProfile("small", ((0, 5.0), (1, 10.0)), 1.0, max_num_tokens=8)
    assert ideal({1: load(1, prompt=20)}, profile).total_ms == 3 * 5.0 + 20


@st.composite
def graphs(draw: st.DrawFn) -> dict[int, Load]:
    loads = {}
    for node in range(1, draw(st.integers(1, 8)) + 1):
        above = st.lists(st.integers(1, max(1, node - 1)), unique=True, max_size=3)
        parents = draw(above) if node > 1 else []
        loads[node] = load(draw(st.integers(1, 9)), *parents, prompt=draw(st.integers(1, 40)))
    return loads


@given(graphs())
def test_on_a_flat_engine_the_bound_is_the_longest_path(loads: dict[int, Load]) -> None:
    graph: nx.DiGraph[int] = nx.DiGraph()
    for node, each in loads.items():
        graph.add_node(node)
        graph.add_edges_from(
            (parent, node, {"steps": loads[parent].num_new_tokens}) for parent in each.parents
        )
        graph.add_edge(node, f"end {node}", steps=each.num_new_tokens)
    longest = nx.dag_longest_path_length(graph, weight="steps")
    assert ideal(loads, FLAT).total_ms == pytest.approx(longest * 10.0)
    total = sum(each.num_new_tokens for each in loads.values())
    assert structural_speedup(loads) == pytest.approx(total / longest)


@given(graphs())
def test_the_bound_lies_between_structure_and_sequence(loads: dict[int, Load]) -> None:
    # Steps grow slower than their batch here: together is never slower than one by one.
    alone_ms = sequential_ms(loads.values(), PROFILE)
    assert ideal(loads, PROFILE).total_ms <= alone_ms * (1 + 1e-9)
    longest_steps = max(each.num_new_tokens for each in loads.values())
    assert ideal(loads, PROFILE).total_ms >= (longest_steps - 1) * PROFILE.step_time_ms(1)
