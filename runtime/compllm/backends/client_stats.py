"""What one request to an engine took and cost, as its client saw it, and the sums over all.

`triton.py` and `llmapi.py` fill these; benchmarks and metrics read them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from compllm.backends.lora_client import LoraCounts
from compllm.types import Usage

Outcome = Literal["done", "failed", "cancelled"]


@dataclass(slots=True)
class RequestStats:
    """One request. Times are seconds from the call; 0 where it did not come so far."""

    id: str
    model: str
    adapter_id: int | None
    started_s: float = field(default_factory=time.monotonic)
    outcome: Outcome = "cancelled"  # until it ends otherwise
    error: str | None = None
    num_attempts: int = 0  # messages that asked for the generation
    num_retries: int = 0  # of them, after a lost or overloaded server
    lora: LoraCounts = field(default_factory=LoraCounts)
    first_response_s: float = 0.0
    total_s: float = 0.0
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    usage: Usage | None = None  # the engine's own report

    @property
    def is_ended(self) -> bool:
        return self.total_s > 0

    def answered(self) -> None:
        """A response has come."""
        self.first_response_s = self.first_response_s or time.monotonic() - self.started_s

    def ended(self, outcome: Outcome, error: BaseException | None = None) -> None:
        self.outcome = outcome
        self.error = None if error is None else str(error)
        self.total_s = time.monotonic() - self.started_s


@dataclass(slots=True)
class ClientStats:
    """Sums over a backend's requests that have ended."""

    num_requests: int = 0
    num_failed: int = 0
    num_cancelled: int = 0
    num_attempts: int = 0
    num_retries: int = 0
    num_streams: int = 0  # opened; more than one: the connection was lost
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    lora: LoraCounts = field(default_factory=LoraCounts)

    def add(self, request: RequestStats) -> None:
        self.num_requests += 1
        self.num_failed += request.outcome == "failed"
        self.num_cancelled += request.outcome == "cancelled"
        self.num_attempts += request.num_attempts
        self.num_retries += request.num_retries
        self.num_input_tokens += request.num_input_tokens
        self.num_output_tokens += request.num_output_tokens
        self.lora.add(request.lora)
