"""The tensors of the `comp_llm` model, and what they mean to the path.

Pure translation: arrays to a Query, events of a query to responses. `comp_llm_serving.py` moves
them. Names, types and shapes that TensorRT-LLM's `ensemble` has too are as there, so that its
clients fit.
"""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compllm.config import LimitsConfig
from compllm.errors import QueryError
from compllm.trace import answer_to_dict, plan_to_dict
from compllm.types import (
    Answer,
    AnswerDelta,
    AnswerFinished,
    Event,
    FinishReason,
    Plan,
    PlanFinished,
    Query,
    Route,
    SamplingParams,
    SubQueryPlanned,
)

Tensors = Mapping[str, NDArray[Any]]

INPUTS = ("text_input", "max_tokens", "temperature", "top_p", "seed", "stream", "deadline_ms")
OUTPUTS = ("text_output", "finish_reason", "plan_json", "stats_json")

_USAGE = ("num_requests", "num_input_tokens", "num_output_tokens")
_MAX_DEADLINE_MS = 86_400_000  # a day, as for the settings
# What Triton or its front ends take as parameters for themselves.
_RESERVED = (
    "id",
    "sequence_id",
    "sequence_start",
    "sequence_end",
    "priority",
    "timeout",
    "headers",
)


@dataclass(frozen=True, slots=True)
class QueryRequest:
    """One request to the model, understood."""

    query: Query
    is_streamed: bool = False  # False: one response with everything


@dataclass(frozen=True, slots=True)
class QueryResponse:
    """One response. Exactly the last one has `finish_reason` and `stats`."""

    text: str = ""  # new text only
    plan: dict[str, Any] | None = None
    finish_reason: FinishReason | None = None
    stats: dict[str, Any] | None = None

    @property
    def is_final(self) -> bool:
        return self.finish_reason is not None


def parse(
    tensors: Tensors, parameters: Mapping[str, object], limits: LimitsConfig, query_id: str = ""
) -> QueryRequest:
    """The request in these tensors of one element each.

    parameters: of the Triton request; HTTP `generate` puts there what it finds no input for.
    Raises QueryError that names the value and what is allowed. The question's own limits are the
    pipeline's to check.
    """
    _refuse_unknown(parameters)
    sampling = SamplingParams(
        max_tokens=_max_tokens(tensors, limits),
        temperature=_temperature(tensors),
        top_p=_top_p(tensors),
        seed=_seed(tensors),
    )
    query = Query(_text(tensors), query_id, _deadline_s(tensors), sampling)
    return QueryRequest(query, bool(_scalar(tensors, "stream", False)))


async def respond(
    events: AsyncIterator[Event], request: QueryRequest
) -> AsyncGenerator[QueryResponse, None]:
    """The responses to what happens to a query. Streamed, the plan comes as soon as it is routed,
    in a response without text; else everything comes in one."""
    plan = _RoutedPlan()
    is_plan_told = False
    async for event in events:
        if isinstance(event, AnswerFinished):
            yield _last(event.answer, request, is_plan_told=is_plan_told)
        elif not request.is_streamed:
            continue
        elif isinstance(event, AnswerDelta):
            yield QueryResponse(event.text)
        elif (told := plan.add(event)) is not None:
            is_plan_told = True
            yield QueryResponse(plan=told)


def outputs(response: QueryResponse) -> dict[str, NDArray[Any]]:
    """The tensors of a response, each [1, 1]. `text_output` is always among them."""
    values: dict[str, str] = {"text_output": response.text}
    if response.plan is not None:
        values["plan_json"] = json.dumps(response.plan, ensure_ascii=False)
    if response.finish_reason is not None:
        values["finish_reason"] = response.finish_reason
    if response.stats is not None:
        values["stats_json"] = json.dumps(response.stats, ensure_ascii=False)
    return {
        name: np.array([[value.encode("utf-8", "replace")]], np.object_)
        for name, value in values.items()
    }


def _last(answer: Answer, request: QueryRequest, *, is_plan_told: bool) -> QueryResponse:
    stats = answer_to_dict(answer)
    for told_elsewhere in ("query", "answer", "finish_reason", "plan"):
        del stats[told_elsewhere]
    stats["usage"] = {name: getattr(answer.usage, name) for name in _USAGE}
    return QueryResponse(
        "" if request.is_streamed else answer.text,
        None if is_plan_told else plan_to_dict(answer.plan, answer.routes),
        answer.finish_reason,
        stats,
    )


class _RoutedPlan:
    """Waits until the plan is whole and each of its sub-queries is routed: they come in either
    order."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._routes: dict[int, Route] = {}

    def add(self, event: Event) -> dict[str, Any] | None:
        """The plan, with the event that makes it whole."""
        if isinstance(event, PlanFinished):
            self._plan = event.plan
            if event.plan.is_fallback:  # its sub-queries replace those before, and come after it
                self._routes.clear()
        elif isinstance(event, SubQueryPlanned):
            self._routes[event.sub_query.id] = event.route
        else:
            return None
        if self._plan is None or len(self._routes) < len(self._plan.sub_queries):
            return None
        return plan_to_dict(
            self._plan, [self._routes[sub_query.id] for sub_query in self._plan.sub_queries]
        )


def _text(tensors: Tensors) -> str:
    value = _scalar(tensors, "text_input", None)
    if value is None:
        raise QueryError("text_input is missing: it holds the question")
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as error:
        raise QueryError(f"text_input is not UTF-8 text: {error}") from error


def _max_tokens(tensors: Tensors, limits: LimitsConfig) -> int:
    most = limits.max_answer_tokens
    value = int(_scalar(tensors, "max_tokens", most))
    if not 1 <= value <= most:
        raise QueryError(
            f"max_tokens is {value}, allowed are 1 to {most} (the server's setting "
            "limits.max_answer_tokens)"
        )
    return value


def _temperature(tensors: Tensors) -> float:
    value = float(_scalar(tensors, "temperature", 0.0))
    if not (math.isfinite(value) and value >= 0):
        raise QueryError(f"temperature is {value:g}, it must be 0 (greedy) or more, and finite")
    return value


def _top_p(tensors: Tensors) -> float:
    value = float(_scalar(tensors, "top_p", 1.0))
    if not 0 <= value <= 1:
        raise QueryError(
            f"top_p is {value:g}, it must be from 0 (the likeliest token alone) to 1 (every token)"
        )
    return value


def _seed(tensors: Tensors) -> int | None:
    value = _scalar(tensors, "seed", None)
    return None if value is None else int(value)


def _deadline_s(tensors: Tensors) -> float | None:
    if "deadline_ms" not in tensors:
        return None
    value = int(_scalar(tensors, "deadline_ms", 0))
    if not 1 <= value <= _MAX_DEADLINE_MS:
        raise QueryError(
            f"deadline_ms is {value}, allowed are 1 to {_MAX_DEADLINE_MS} milliseconds"
        )
    return value / 1000


def _scalar(tensors: Tensors, name: str, default: Any) -> Any:
    array = tensors.get(name)
    if array is None or not array.size:
        return default
    if array.size != 1:
        raise QueryError(f"{name} has {array.size} values: it takes one, send a request for each")
    return array.reshape(-1)[0]


def _refuse_unknown(parameters: Mapping[str, object]) -> None:
    """A misspelt input would otherwise be left out in silence."""
    for name, value in parameters.items():
        is_known = name in _RESERVED or name.startswith("triton_")
        if is_known or value == "":  # an empty text asks for nothing: clients of others send them
            continue
        close = get_close_matches(name, INPUTS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(INPUTS)}"
        raise QueryError(f"unknown input {name!r}: {hint}")
