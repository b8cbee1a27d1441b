"""Records of runs for the tests of `lab.explain`: a literal one, and any that can happen."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

# Two look-ups and a join. The planner wrote its third line after both had begun, node 2 ended last.
JOIN: dict[str, Any] = {
    "query": "Which is larger?",
    "answer": "The first.",
    "plan": {"num_nodes": 3, "depth": 2, "is_fallback": False, "lines": []},
    "nodes": [
        {
            "id": 1, "text": "What is a?", "parents": [], "expert": "chemistry", "status": "done",
            "ready_ms": 100, "start_ms": 101, "first_token_ms": 120, "end_ms": 160,
            "num_output_tokens": 4,
        },
        {
            "id": 2, "text": "What is b?", "parents": [], "expert": "biology", "status": "done",
            "ready_ms": 150, "start_ms": 151, "first_token_ms": 181, "end_ms": 250,
            "num_output_tokens": 7,
        },
        {
            "id": 3, "text": "Which is larger, #1 or #2?", "parents": [1, 2], "expert": "base",
            "status": "done", "ready_ms": 252, "start_ms": 257, "first_token_ms": 300,
            "end_ms": 400, "num_output_tokens": 5,
        },
    ],
    "timings": {
        "plan_ms": 200, "route_ms": 30, "execute_ms": 299, "compose_ms": 90,
        "first_token_ms": 420, "total_ms": 490,
    },
    "bound": {"ideal_speedup": 1.2, "reached_speedup": 1.1},
}  # fmt: skip

# Quarters are exact in binary: sums of them are equal when they should be, so that ties happen.
_times = st.integers(0, 400).map(lambda quarters: quarters / 4)


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """A record of a run that keeps every rule: any graph, any times."""
    num_nodes = draw(st.integers(1, 7))
    has_planner = draw(st.booleans())
    arrivals = [0.0] * num_nodes
    at_ms = 0.0
    if has_planner:
        for place in range(num_nodes):
            at_ms += draw(_times)
            arrivals[place] = at_ms
    nodes: list[dict[str, Any]] = []
    for id in range(1, num_nodes + 1):
        earlier = st.sets(st.integers(1, id - 1), max_size=3) if id > 1 else st.just(set[int]())
        parents = sorted(draw(earlier))
        ends = [nodes[parent - 1]["end_ms"] for parent in parents]
        since_ms = max([arrivals[id - 1], *ends])
        node: dict[str, Any] = {"id": id, "parents": parents}
        for key in ("ready_ms", "start_ms", "scheduled_ms", "first_token_ms", "end_ms"):
            since_ms += draw(_times)
            node[key] = since_ms
        nodes.append(node)
    plan_ms = at_ms + draw(_times) if has_planner else 0.0
    end_ms = max([plan_ms, *(node["end_ms"] for node in nodes)])
    times = {
        "plan_ms": plan_ms,
        "route_ms": draw(_times),
        "total_ms": end_ms + draw(_times),
    }
    if draw(st.booleans()):
        times["compose_ms"] = times["total_ms"] - end_ms
    return {"query": "q", "nodes": draw(st.permutations(nodes)), "timings": times}
