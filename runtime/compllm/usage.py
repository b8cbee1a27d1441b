"""Counts what one query uses of the engines, request by request; the Answer holds the sums."""

from __future__ import annotations

from dataclasses import dataclass, field

from compllm.backend import Chunk
from compllm.types import QueryUsage, Usage


@dataclass(slots=True, eq=False)
class RequestUsage:
    """Of one request, up to the last chunk that came."""

    num_output_tokens: int = 0
    reported: Usage | None = None  # by the engine; None: the request has not ended

    def add(self, chunk: Chunk) -> None:
        self.num_output_tokens += chunk.num_tokens
        if chunk.usage is not None:
            self.reported = chunk.usage


@dataclass(slots=True)
class UsageCounter:
    """Of one query. `plan` and `answer` are among its requests."""

    requests: list[RequestUsage] = field(default_factory=list)
    plan: RequestUsage | None = None
    answer: RequestUsage | None = None

    def request(self) -> RequestUsage:
        """A request goes to an engine: its chunks are to be added to what this returns."""
        self.requests.append(RequestUsage())
        return self.requests[-1]

    def plan_request(self) -> RequestUsage:
        """As `request`, for one that writes a plan; the first of them is `plan`."""
        counted = self.request()
        self.plan = self.plan or counted
        return counted

    def discard(self, request: RequestUsage) -> None:
        """It was another query's request: its response was shared."""
        self.requests.remove(request)

    def total(self) -> QueryUsage:
        ended = [each.reported for each in self.requests if each.reported is not None]
        return QueryUsage(
            len(self.requests),
            sum(each.num_input_tokens for each in ended),
            sum(each.num_output_tokens for each in self.requests),
            None if self.plan is None else self.plan.reported,
            None if self.answer is None else self.answer.reported,
        )
