"""Answer -> the JSON object that `ask --json` prints: what was done, by whom, when. Times in
milliseconds from the start of the query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compllm.plan import cut_warning, format_line, plan_depth
from compllm.types import Answer, NodeResult, Plan, Route, SubQuery


def answer_to_dict(answer: Answer) -> dict[str, Any]:
    """The whole answer, ready for `json.dumps`."""
    plan, timings, bound = answer.plan, answer.timings, answer.bound
    return {
        "query": answer.query.text,
        "answer": answer.text,
        "finish_reason": answer.finish_reason,
        "confidence": None if answer.confidence is None else round(answer.confidence, 4),
        "is_low_confidence": answer.is_low_confidence,
        **({"warning": cut_warning(plan)} if plan.is_cut else {}),
        **({"is_partial": True, "error": answer.error} if answer.is_partial else {}),
        "plan": plan_to_dict(plan),
        "nodes": [
            _node(sub_query, route, result)
            for sub_query, route, result in zip(
                plan.sub_queries, answer.routes, answer.nodes, strict=True
            )
        ],
        "timings": {
            "plan_ms": _ms(timings.plan_s),
            "route_ms": _ms(timings.route_s),
            "execute_ms": _ms(timings.execute_s),
            "compose_ms": _ms(timings.compose_s),
            "first_token_ms": _ms(timings.first_token_s),
            "total_ms": _ms(timings.total_s),
        },
        "bound": {
            "ideal_speedup": round(bound.ideal_speedup, 4),
            "reached_speedup": round(bound.reached_speedup, 4),
        },
    }


def plan_to_dict(plan: Plan, routes: Sequence[Route] = ()) -> dict[str, Any]:
    """The plan alone, with its experts where `routes` are given. `plan.parse_plan` reads it
    back."""
    return {
        "num_nodes": len(plan.sub_queries),
        "depth": plan_depth(plan.sub_queries),
        "is_fallback": plan.is_fallback,
        **({"fallback_reason": plan.reason} if plan.is_fallback else {}),
        **({"is_cut": True, "warning": cut_warning(plan)} if plan.is_cut else {}),
        **({"num_copies": plan.num_copies} if plan.num_copies else {}),
        **({"is_drawn": True} if plan.is_drawn else {}),
        **({"is_direct": True} if plan.is_direct else {}),
        **({"reason": plan.reason} if plan.is_direct and plan.reason else {}),
        "lines": [format_line(sub_query) for sub_query in plan.sub_queries],
        **({"experts": [route.expert for route in routes]} if routes else {}),
    }


def _node(sub_query: SubQuery, route: Route, result: NodeResult) -> dict[str, Any]:
    return {
        "id": sub_query.id,
        "text": sub_query.text,
        "parents": list(sub_query.parents),
        "expert": result.expert,
        "similarity": round(route.similarity, 4),
        "status": result.status,
        "response": result.response,
        **({"error": result.error} if result.error is not None else {}),
        "ready_ms": _ms(result.ready_s),
        "start_ms": _ms(result.start_s),
        **_scheduled(result),
        "first_token_ms": _ms(result.first_token_s),
        "end_ms": _ms(result.end_s),
        "num_input_tokens": result.usage.num_input_tokens,
        "num_output_tokens": result.usage.num_output_tokens,
        "kv_reused_blocks": result.usage.kv_reused_blocks,
        "is_shared": result.is_shared,
    }


def _scheduled(result: NodeResult) -> dict[str, float]:
    """When the engine took the node up, where it reports that; between what surrounds it, as its
    clock begins at the request's arrival there."""
    if not result.usage.scheduled_s:
        return {}
    at_s = result.start_s + result.usage.scheduled_s
    return {"scheduled_ms": _ms(min(at_s, result.first_token_s))}


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
