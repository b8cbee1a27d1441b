import statistics
from itertools import islice

import pytest
from replay_parts import GRAPH

from compllm.lab.replay.graphs import ReplayGraph
from compllm.lab.replay.workload import MAX_TOKENS, TokenLengths, arrivals
from compllm.plan import parse_plan


def test_fixed_lengths_are_all_alike() -> None:
    assert TokenLengths(32).of(GRAPH) == {1: 32, 2: 32, 3: 32, 4: 32}


def test_drawn_lengths_belong_to_seed_graph_and_node() -> None:
    drawn = TokenLengths(40, 0.5, 7)
    assert drawn.of(GRAPH) == drawn.of(GRAPH)
    other_graph = ReplayGraph("g2", GRAPH.question, GRAPH.plan)
    assert drawn.of(GRAPH) != drawn.of(other_graph)
    assert drawn.of(GRAPH) != TokenLengths(40, 0.5, 8).of(GRAPH)
    shorter = ReplayGraph("g1", "q", parse_plan("1 | first?"))
    assert drawn.of(shorter)[1] == drawn.of(GRAPH)[1]


def test_the_mean_of_drawn_lengths_is_the_mean_asked_for() -> None:
    graphs = [ReplayGraph(f"g{number}", "q", GRAPH.plan) for number in range(1000)]
    lengths = [each for graph in graphs for each in TokenLengths(40, 0.5).of(graph).values()]
    assert statistics.mean(lengths) == pytest.approx(40, rel=0.03)
    assert min(lengths) >= 1


def test_a_drawn_length_has_a_limit() -> None:
    graphs = [ReplayGraph(f"g{number}", "q", GRAPH.plan) for number in range(200)]
    drawn = [each for graph in graphs for each in TokenLengths(1000, 3).of(graph).values()]
    assert max(drawn) == MAX_TOKENS


def test_arrivals_are_of_the_rate_and_the_seed() -> None:
    times = list(islice(arrivals(4.0, 1), 2000))
    assert times == list(islice(arrivals(4.0, 1), 2000))
    assert times == sorted(times)
    assert times[-1] == pytest.approx(500, rel=0.1)
    assert next(arrivals(4.0, 2)) != times[0]
