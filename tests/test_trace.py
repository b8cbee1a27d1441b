import json
from dataclasses import replace

from compllm.plan import parse_plan
from compllm.trace import answer_to_dict, plan_to_dict
from compllm.types import (
    Answer,
    Bound,
    NodeResult,
    Plan,
    Query,
    Route,
    SubQuery,
    Timings,
    Usage,
)

PLAN = Plan((SubQuery(1, "a?"), SubQuery(2, "b?", (1,))))
ROUTE = Route("chemistry", 0.87654, is_fallback=False)
DONE = NodeResult(
    1,
    "chemistry",
    "done",
    "x",
    None,
    "stop",
    Usage(9, 2, 1),
    0.001,
    0.002,
    0.003,
    0.004,
    log_probs=(-0.5, -0.25),  # never in the object: one number a token
)
FAILED = NodeResult(2, "base", "failed", error="no")
ANSWER = Answer(
    Query("q"),
    "x",
    PLAN,
    (ROUTE, ROUTE),
    (DONE, FAILED),
    Timings(0.0015, 0, 0, 0, 0, 2),
    Bound(1.5, 1.25),
)


def test_the_object_has_the_agreed_keys() -> None:
    value = answer_to_dict(ANSWER)
    assert list(value) == [
        "query",
        "answer",
        "finish_reason",
        "confidence",
        "is_low_confidence",
        "plan",
        "nodes",
        "timings",
        "bound",
    ]
    assert list(value["plan"]) == ["num_nodes", "depth", "is_fallback", "lines"]
    assert list(value["nodes"][0]) == [
        "id", "text", "parents", "expert", "similarity", "status", "response", "ready_ms",
        "start_ms", "first_token_ms", "end_ms", "num_input_tokens", "num_output_tokens",
        "kv_reused_blocks", "is_shared",
    ]  # fmt: skip
    assert list(value["timings"]) == [
        "plan_ms", "route_ms", "execute_ms", "compose_ms", "first_token_ms", "total_ms",
    ]  # fmt: skip
    assert value["bound"] == {"ideal_speedup": 1.5, "reached_speedup": 1.25}


def test_times_are_milliseconds() -> None:
    value = answer_to_dict(ANSWER)
    assert value["timings"]["plan_ms"] == 1.5
    assert value["nodes"][0]["end_ms"] == 4.0


def test_what_went_wrong_is_told_only_where_something_did() -> None:
    partial = Answer(
        ANSWER.query,
        "x",
        PLAN,
        ANSWER.routes,
        ANSWER.nodes,
        ANSWER.timings,
        ANSWER.bound,
        True,
        "late",
    )
    assert answer_to_dict(partial)["error"] == "late"
    assert answer_to_dict(ANSWER)["nodes"][1]["error"] == "no"
    assert "error" not in answer_to_dict(ANSWER)["nodes"][0]


def test_a_printed_plan_reads_back() -> None:
    assert parse_plan(json.dumps(plan_to_dict(PLAN))) == PLAN
    assert parse_plan(json.dumps(answer_to_dict(ANSWER))) == PLAN


def test_a_plan_names_its_experts_where_they_are_known() -> None:
    assert plan_to_dict(PLAN, (ROUTE, ROUTE))["experts"] == ["chemistry", "chemistry"]


def test_a_plan_that_was_cut_is_warned_of() -> None:
    cut = replace(PLAN, is_cut=True)
    said = "the question has more parts than generator.max_nodes = 2; the rest was left out"
    value = answer_to_dict(replace(ANSWER, plan=cut))
    assert value["warning"] == said  # it stands in the `stats_json` of comp_llm too
    assert (value["plan"]["is_cut"], value["plan"]["warning"]) == (True, said)
    assert "warning" not in answer_to_dict(ANSWER)
    assert "is_cut" not in plan_to_dict(PLAN)


def test_a_plan_records_the_lines_that_were_left_out_as_copies() -> None:
    assert plan_to_dict(replace(PLAN, num_copies=2))["num_copies"] == 2
    assert "num_copies" not in plan_to_dict(PLAN)
