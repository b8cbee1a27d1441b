"""What a caller gave as a query and its plan, checked before anything is sent: types, then limits.

Python does not hold a caller to the types of `types.py`. A value of another type would fail far
from here, in a prompt or in a tensor, with an error that does not name it.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import replace
from numbers import Integral, Real
from typing import TypeGuard

from compllm.config import LimitsConfig
from compllm.errors import PlanError, QueryError
from compllm.plan import direct_plan, is_encodable, make_plan
from compllm.types import Plan, Query, SamplingParams

_MOST = 2**31 - 1  # what an INT32 tensor holds
_NUMBERS: dict[str, tuple[Callable[[float], bool], str]] = {
    "temperature": (lambda value: value >= 0, "0 (greedy) or more"),
    "top_p": (lambda value: 0 <= value <= 1, "from 0 (the likeliest token alone) to 1"),
    "repetition_penalty": (lambda value: value > 0, "more than 0"),
}


def checked(query: object, limits: LimitsConfig) -> Query:
    """The query with its text stripped and an id. Raises QueryError that names the value."""
    if isinstance(query, str):
        query = Query(query)
    if not isinstance(query, Query):
        raise QueryError(f"the question is {_named(query)}, expected text (str) or a Query")
    if not isinstance(query.text, str):
        raise QueryError(f"the text of the Query is {_named(query.text)}, expected text (str)")
    if not (isinstance(query.id, str) and is_encodable(query.id)):
        raise QueryError(f"the id of the Query is {_named(query.id)}, expected text (str)")
    query = replace(query, text=query.text.strip(), id=query.id or uuid.uuid4().hex[:12])
    problem = (
        _problem_of_text(query.text, limits.max_query_chars)
        or _problem_of_deadline(query.deadline_s)
        or _problem_of_sampling(query.sampling)
    )
    if problem:
        raise QueryError(problem, query_id=query.id)
    return query


def checked_plan(plan: object, query: Query, limits: LimitsConfig) -> Plan | None:
    """A plan that was given with the query, within the limits. Raises PlanError."""
    if plan is None:
        return None
    if not isinstance(plan, Plan):
        raise PlanError(f"the plan is a {type(plan).__name__}, expected a Plan: see parse_plan")
    if plan == direct_plan(query.text):  # the question's own limits hold for it
        return plan
    return make_plan(plan.sub_queries, limits.plan)


def _problem_of_text(text: str, limit: int) -> str | None:
    if not text:
        return "the question is empty"
    if len(text) > limit:
        return f"the question has {len(text)} characters, at most {limit} are allowed"
    if not is_encodable(text):
        return "the question is not text: it holds half a surrogate pair"
    return None


def _problem_of_deadline(deadline_s: object) -> str | None:
    if deadline_s is None:
        return None
    if not _is_number(deadline_s):
        return f"deadline_s is {_named(deadline_s)}, expected seconds as a number, or None"
    return None if deadline_s > 0 else f"the deadline is {deadline_s} s, it must be more than 0"


def _problem_of_sampling(sampling: object) -> str | None:
    if not isinstance(sampling, SamplingParams):
        return f"the sampling is {_named(sampling)}, expected SamplingParams"
    for name, low in (("max_tokens", 1), ("top_k", 0), ("min_tokens", 0)):
        value = getattr(sampling, name)
        if not (_is_integer(value) and low <= value <= _MOST):
            return f"sampling.{name} is {_named(value)}, expected an integer from {low} to {_MOST}"
    if not (sampling.seed is None or _is_integer(sampling.seed)):
        return f"sampling.seed is {_named(sampling.seed)}, expected an integer, or None"
    for name, (is_allowed, allowed) in _NUMBERS.items():
        value = getattr(sampling, name)
        if not (_is_number(value) and math.isfinite(value) and is_allowed(value)):
            return f"sampling.{name} is {_named(value)}, expected a number, {allowed}"
    stop = sampling.stop
    if not isinstance(stop, tuple) or not all(
        isinstance(each, str) and is_encodable(each) for each in stop
    ):
        return f"sampling.stop is {_named(stop)}, expected a tuple of texts"
    return None


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _named(value: object) -> str:
    """The value and its type, short enough for an error line."""
    if value is None:
        return "None"
    shown = repr(value)
    shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
    return f"{shown} ({type(value).__name__})"
