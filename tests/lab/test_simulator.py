"""The simulator against arithmetic by hand, against a slower one in plain Python, and its laws."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulator_oracle import Machine, Oracle

from compllm import _core
from compllm.errors import PlanError

MACHINE = Machine(
    step_ms=(4.0, 8.0, 10.0, 12.0, 14.0),
    prefill_ms=1.0,
    max_num_tokens=64,
    context_ms=0.0,
    mixed_ms=0.0,
    to_engine_ms=0.0,
    from_engine_ms=0.0,
    handover_ms=0.0,
    route_ms=0.0,
    policy="oldest_query_first",
    max_in_flight=4,
    num_engines=1,
    is_streamed=True,
)
# Two look-ups and a comparison of them.
JOIN: dict[str, Any] = {
    "gates": [[], [], [0, 1]],
    "quotes": [[], [], [0, 1]],
    "prompt": [10, 10, 20],
    "quoted": [5, 5, 5],
    "leaves": [2],
    "line_ends": [],
    "plan_prompt": 0,
    "answer_prompt": 0,
}
PLANNED = {**JOIN, "line_ends": [8, 16, 28], "plan_prompt": 12, "answer_prompt": 15}
Queries = list[tuple[float, dict[str, Any], list[int]]]  # arrival, graph, responses


def simulated(machine: Machine, queries: Queries, *, is_traced: bool = False) -> _core.Simulated:
    distinct: list[dict[str, Any]] = []
    for _, graph, _ in queries:
        if graph not in distinct:
            distinct.append(graph)
    specs = [
        _core.GraphSpec(
            graph["gates"],
            graph["quotes"],
            graph["prompt"],
            graph["quoted"],
            graph["leaves"],
            graph["line_ends"],
            graph["plan_prompt"],
            graph["answer_prompt"],
        )
        for graph in distinct
    ]
    return _core.simulate(
        specs,
        _core.EngineModel(
            machine.step_ms,
            machine.prefill_ms,
            machine.max_num_tokens,
            machine.context_ms,
            machine.mixed_ms,
        ),
        _core.HostModel(
            machine.to_engine_ms, machine.from_engine_ms, machine.handover_ms, machine.route_ms
        ),
        _core.Policy.__members__[machine.policy],
        machine.max_in_flight,
        np.array([arrival for arrival, _, _ in queries]),
        np.array([distinct.index(graph) for _, graph, _ in queries], np.int32),
        np.array([length for _, _, lengths in queries for length in lengths], np.int32),
        machine.num_engines,
        machine.is_streamed,
        is_traced,
    )


def latency(machine: Machine, graph: dict[str, Any], responses: list[int]) -> float:
    """Of one query alone."""
    return float(simulated(machine, [(0.0, graph, responses)]).take_latency_ms()[0])


# By hand.


def test_a_lone_query_takes_the_time_of_its_steps():
    # Two prompts of 10 in one step (4 + 20), 3 steps of two (30); a prompt of 20 and what it
    # quotes, 2 * 5 + 4 + 4 (4 + 38), 5 steps of one (40).
    assert latency(MACHINE, JOIN, [4, 4, 6, 1]) == 24 + 30 + 42 + 40


def test_a_prompt_longer_than_the_budget_takes_several_steps():
    alone = {**JOIN, "gates": [[]], "quotes": [[]], "prompt": [100], "quoted": [5], "leaves": [0]}
    # 64 and 36 tokens, then one step of decoding.
    assert latency(MACHINE, alone, [2, 1]) == 68 + 40 + 8


def test_the_host_adds_its_time_to_every_edge_of_the_path():
    machine = replace(MACHINE, to_engine_ms=1.0, from_engine_ms=2.0, handover_ms=4.0)
    # Two requests after each other on the longest path, one handover between.
    assert latency(machine, JOIN, [4, 4, 6, 1]) == 136 + 2 * 3 + 4


def test_a_line_is_started_while_the_next_is_written():
    one_line = {**PLANNED, "gates": [[]], "quotes": [[]], "prompt": [10], "quoted": [5]}
    one_line |= {"leaves": [0], "line_ends": [8], "answer_prompt": 0}
    # Plan: 4 + 12, 7 steps; node: 4 + 10, 3 steps.
    assert latency(MACHINE, one_line, [4, 1]) == 16 + 56 + 14 + 24
    two = {**one_line, "gates": [[], []], "quotes": [[], []], "prompt": [10, 10]}
    two |= {"quoted": [5, 5], "leaves": [0, 1], "line_ends": [8, 16]}
    whole = latency(replace(MACHINE, is_streamed=False), two, [4, 4, 1])
    # The first node's prompt beside a step of the plan (8 + 10), 3 steps of two, 4 of the plan's.
    assert latency(MACHINE, two, [4, 4, 1]) == 16 + 56 + 18 + 30 + 32 + 14 + 24
    assert whole == 16 + 120 + 24 + 30


def test_context_and_mixed_steps_cost_what_the_profile_says():
    alone = {**JOIN, "gates": [[]], "quotes": [[]], "prompt": [10], "quoted": [5], "leaves": [0]}
    machine = replace(MACHINE, context_ms=0.5)
    # Two steps of decoding that look back on 11 and 12 tokens.
    assert latency(machine, alone, [3, 1]) == 14 + 8 + 5.5 + 8 + 6
    mixed = replace(MACHINE, mixed_ms=3.0)
    late = [(0.0, alone, [3, 1]), (1.0, alone, [1, 1])]
    assert simulated(mixed, late).take_latency_ms().tolist() == [14 + 21 + 8, 13 + 21]


def test_first_token_is_the_answers():
    result = simulated(MACHINE, [(0.0, PLANNED, [4, 4, 4, 9])])
    ttft, total = result.take_ttft_ms()[0], result.take_latency_ms()[0]
    assert total - ttft == 8 * 8.0


def test_two_engines_share_the_requests():
    pair = {**JOIN, "gates": [[], []], "quotes": [[], []], "prompt": [10, 10]}
    pair |= {"quoted": [5, 5], "leaves": [0, 1]}
    result = simulated(replace(MACHINE, num_engines=2), [(0.0, pair, [4, 4, 1])], is_traced=True)
    assert [each.engine for each in result.requests] == [0, 1]
    assert result.take_latency_ms()[0] == 14 + 24


def test_oldest_query_overtakes_in_the_queue_and_fifo_does_not():
    chain = {**JOIN, "gates": [[], [0]], "quotes": [[], [0]], "prompt": [10, 10]}
    chain |= {"quoted": [5, 5], "leaves": [1]}
    single = replace(MACHINE, max_in_flight=1)
    queries = [(0.0, chain, [4, 4, 1]), (1.0, chain, [4, 4, 1]), (2.0, chain, [4, 4, 1])]

    def order(policy: str) -> list[tuple[int, int]]:
        result = simulated(replace(single, policy=policy), queries, is_traced=True)
        return [(each.query, each.node) for each in result.requests]

    # The slot goes on before the child asks for one: query 1 comes between in both.
    assert order("fifo") == [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2)]
    assert order("oldest_query_first") == [(0, 1), (1, 1), (0, 2), (1, 2), (2, 1), (2, 2)]


# Laws.

dyadic = st.integers(0, 64).map(lambda number: number / 8)  # sums of these are exact


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, Any]:
    num = draw(st.integers(1, 5))
    parents = [
        draw(st.lists(st.integers(0, node - 1), unique=True, max_size=3)) if node else []
        for node in range(num)
    ]
    inner = {parent for row in parents for parent in row}
    has_plan = draw(st.booleans())
    lines = draw(st.lists(st.integers(1, 6), min_size=num, max_size=num))
    return {
        "gates": parents,
        "quotes": parents,
        "prompt": draw(st.lists(st.integers(1, 20), min_size=num, max_size=num)),
        "quoted": draw(st.lists(st.integers(0, 5), min_size=num, max_size=num)),
        "leaves": [node for node in range(num) if node not in inner],
        "line_ends": np.cumsum(lines).tolist() if has_plan else [],
        "plan_prompt": draw(st.integers(1, 20)) if has_plan else 0,
        "answer_prompt": draw(st.integers(0, 20)),
    }


@st.composite
def loads(draw: st.DrawFn) -> Queries:
    shapes = draw(st.lists(graphs(), min_size=1, max_size=3))
    at_ms, queries = 0.0, []
    for _ in range(draw(st.integers(1, 8))):
        graph = draw(st.sampled_from(shapes))
        num = len(graph["gates"]) + 1
        at_ms += draw(dyadic) * draw(st.sampled_from((0, 1, 8)))
        queries.append(
            (at_ms, graph, draw(st.lists(st.integers(1, 9), min_size=num, max_size=num)))
        )
    return queries


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    rising = draw(st.lists(dyadic, min_size=2, max_size=6))
    return Machine(
        step_ms=(rising[0], *(ms + 0.5 for ms in np.cumsum(rising[1:]).tolist())),
        prefill_ms=draw(dyadic),
        max_num_tokens=draw(st.sampled_from((4, 16, 64))),
        context_ms=draw(st.sampled_from((0.0, 0.125, 1.0))),
        mixed_ms=draw(dyadic),
        to_engine_ms=draw(dyadic),
        from_engine_ms=draw(dyadic),
        handover_ms=draw(dyadic),
        route_ms=draw(dyadic),
        policy=draw(st.sampled_from([*_core.Policy.__members__])),
        max_in_flight=draw(st.integers(1, 6)),
        num_engines=draw(st.integers(1, 3)),
        is_streamed=draw(st.booleans()),
    )


@settings(deadline=None, max_examples=150)
@given(machines(), loads())
def test_every_query_fares_as_in_the_plain_simulator(machine: Machine, queries: Queries):
    oracle = Oracle(machine)
    oracle.run(queries)
    result = simulated(machine, queries, is_traced=True)
    assert [(each.query, each.node) for each in result.requests] == oracle.order
    for taken, expected in (
        (result.take_latency_ms(), oracle.latency_ms),
        (result.take_ttft_ms(), oracle.ttft_ms),
        (result.take_wait_ms(), oracle.wait_ms),
    ):
        assert taken.tolist() == [expected[number] for number in range(len(queries))]
    for engine, slow in zip(result.engines, oracle.engines, strict=True):
        assert (engine.busy_ms, engine.num_steps) == (slow.busy_ms, slow.num_steps)


@settings(deadline=None, max_examples=75)
@given(machines(), loads())
def test_no_request_is_lost_and_no_token_either(machine: Machine, queries: Queries):
    result = simulated(machine, queries, is_traced=True)
    num_requests = num_output = num_prefill = 0
    for _, graph, responses in queries:
        num_nodes = len(graph["gates"])
        has_plan, is_composed = bool(graph["line_ends"]), bool(graph["answer_prompt"])
        num_requests += num_nodes + has_plan + is_composed
        num_output += sum(responses[:num_nodes]) + is_composed * responses[-1]
        num_output += graph["line_ends"][-1] if has_plan else 0
        quotes = [quoted for row in graph["quotes"] for quoted in row]
        quotes += graph["leaves"] if is_composed else []
        num_prefill += sum(graph["prompt"]) + graph["plan_prompt"] + graph["answer_prompt"]
        num_prefill += sum(graph["quoted"][quoted] + responses[quoted] for quoted in quotes)
    engines = result.engines
    assert result.num_requests == len(result.requests) == num_requests
    assert sum(engine.num_requests for engine in engines) == num_requests
    assert sum(engine.num_output_tokens for engine in engines) == num_output
    assert sum(engine.num_prefill_tokens for engine in engines) == num_prefill
    assert all(engine.busy_ms <= result.end_ms for engine in engines)


@settings(deadline=None, max_examples=75)
@given(machines(), loads())
def test_no_node_starts_before_its_parents_end_nor_more_than_the_limit_at_a_time(
    machine: Machine, queries: Queries
):
    requests = simulated(machine, queries, is_traced=True).requests
    ended = {(each.query, each.node): each.end_ms for each in requests}
    for each in requests:
        assert each.ready_ms <= each.admitted_ms <= each.first_token_ms <= each.end_ms
        if each.node > 0:
            gates = queries[each.query][1]["gates"][each.node - 1]
            before = [ended[each.query, gate + 1] for gate in gates]
        else:  # nothing comes before the plan, everything before the answer
            before = [end for (query, _), end in ended.items() if query == each.query]
            before = [] if each.node == 0 else [end for end in before if end < each.end_ms]
        assert all(end <= each.ready_ms for end in before)
        together = [
            other
            for other in requests
            if other.engine == each.engine and other.admitted_ms <= each.admitted_ms < other.end_ms
        ]
        assert len(together) <= machine.max_in_flight


@pytest.mark.parametrize("policy", [*_core.Policy.__members__])
def test_latency_rises_with_the_load(policy: str):
    rng = np.random.default_rng(0)
    gaps = np.cumsum(rng.exponential(1.0, 4000))
    machine = replace(MACHINE, policy=policy)

    def mean(gap_ms: float) -> float:
        queries: Queries = [(at_ms, PLANNED, [8, 8, 8, 8]) for at_ms in (gaps * gap_ms).tolist()]
        return float(simulated(machine, queries).take_latency_ms().mean())

    means = [mean(gap_ms) for gap_ms in (2000, 1000, 600, 500)]
    alone = latency(machine, PLANNED, [8, 8, 8, 8])
    assert alone <= means[0]
    assert means == sorted(means)


def test_the_same_input_gives_the_same_output():
    queries: Queries = [(100.0 * number, PLANNED, [5, 6, 7, 8]) for number in range(50)]
    first, second = (simulated(MACHINE, queries).take_latency_ms() for _ in range(2))
    assert first.tolist() == second.tolist()


# Bad input.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": [10, 10]}, "do not fit"),
        ({"prompt": [10, 0, 10]}, "node 1"),
        ({"gates": [[], [], [3]]}, "node 3, which is not there"),
        ({"line_ends": [8, 8, 9], "plan_prompt": 4}, "8 follows 8"),
        ({"line_ends": [8, 9, 10]}, "a prompt of 0 tokens"),
        ({"leaves": [5]}, "no leaf 5"),
    ],
)
def test_a_graph_that_makes_no_sense_is_refused(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        simulated(MACHINE, [(0.0, {**JOIN, **change}, [1, 1, 1, 1])])


def test_a_cycle_is_a_plan_error():
    circle = {**JOIN, "gates": [[1], [0], []]}
    with pytest.raises(PlanError, match="cycle"):
        simulated(MACHINE, [(0.0, circle, [1, 1, 1, 1])])


@pytest.mark.parametrize(
    ("machine", "queries", "message"),
    [
        (MACHINE, [(5.0, JOIN, [1, 1, 1, 1]), (4.0, JOIN, [1, 1, 1, 1])], "do not rise"),
        (MACHINE, [(0.0, JOIN, [1, 1, 1])], "3 response lengths"),
        (MACHINE, [(0.0, JOIN, [1, 0, 1, 1])], "0 tokens"),
        (replace(MACHINE, step_ms=(4.0,)), [(0.0, JOIN, [1, 1, 1, 1])], "1 entries"),
        (replace(MACHINE, step_ms=(4.0, 0.0)), [(0.0, JOIN, [1, 1, 1, 1])], "takes 0 ms"),
        (replace(MACHINE, prefill_ms=-1.0), [(0.0, JOIN, [1, 1, 1, 1])], "not negative"),
        (replace(MACHINE, route_ms=float("nan")), [(0.0, JOIN, [1, 1, 1, 1])], "finite"),
        (replace(MACHINE, max_num_tokens=0), [(0.0, JOIN, [1, 1, 1, 1])], "max_num_tokens"),
        (replace(MACHINE, num_engines=0), [(0.0, JOIN, [1, 1, 1, 1])], "num_engines"),
        (replace(MACHINE, max_in_flight=0), [(0.0, JOIN, [1, 1, 1, 1])], "limit 0"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(machine: Machine, queries: Queries, message: str):
    with pytest.raises(ValueError, match=message):
        simulated(machine, queries)
