"""One request inside the engine, from the queue to its end: its tokens and what became of them.

`executor.py` opens and drives sequences, `scheduler.py` decides which of them compute in a step.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compllm.embedded.blocks import BlockTable
from compllm.embedded.request import EngineEvent, EnginePerf, EngineRequest, OnEvent
from compllm.embedded.sampling import SamplerState, StopMatcher
from compllm.embedded.slots import Slot
from compllm.embedded.texttools import TextTools
from compllm.errors import RequestInvalid, Situation
from compllm.types import FinishReason

NO_SLOT = Slot(-1, None, -1)  # of a sequence that is being opened


@dataclass(slots=True, eq=False)
class Sequence:
    """A request that was accepted. The engine's thread alone changes it."""

    handle: int
    request: EngineRequest
    on_event: OnEvent
    slot: Slot
    sampler: SamplerState
    stops: StopMatcher | None
    tokens: list[int]  # prompt and output
    arrival_ns: int
    table: BlockTable = field(default_factory=BlockTable)
    max_blocks: int = 0
    num_computed: int = 0  # tokens whose keys and values are in the cache
    log_probs: list[float] = field(default_factory=list)  # of the output, where it is wanted
    num_delivered: int = 0  # output tokens handed to on_event
    first_scheduled_ns: int = 0
    first_token_ns: int = 0
    delivered_ns: int = 0  # when on_event was last called
    masking: Future[Any] | None = None  # the next token's mask, computed by another thread
    late_logits: NDArray[np.float32] | None = None  # of a step that ended before that mask

    @property
    def is_mask_ready(self) -> bool:
        """Whether a token can be sampled without waiting."""
        return self.masking is None or self.masking.done()

    @property
    def can_go_on(self) -> bool:
        """Whether there is anything to do for it now."""
        return self.late_logits is None or self.is_mask_ready

    @property
    def num_output(self) -> int:
        return len(self.tokens) - len(self.request.input_ids)

    def push(self, token: int) -> FinishReason | None:
        """Take in a sampled token. Returns why the sequence ends with it; None: it goes on."""
        if token == self.request.end_id:
            return "stop"  # never part of the output
        self.tokens.append(token)
        if self.request.wants_log_probs:
            self.log_probs.append(self.sampler.log_prob)
        is_stopped = self.stops is not None and self.stops.feed(token)
        if is_stopped or self.sampler.is_finished:
            return "stop"
        return "length" if self.num_output >= self.request.max_tokens else None

    def is_due(self, now_ns: int, interval_ns: int, line_ends: frozenset[int]) -> bool:
        """Whether a streamed sequence reports its new tokens now: after its first token, at the end
        of a line, and when its last report is `interval_ns` old. A report costs the cores as much
        as a tenth of a step, but a client starts a sub-query as soon as it has the line of it."""
        is_first, is_line = self.num_delivered == 0, self.tokens[-1] in line_ends
        return is_first or is_line or now_ns - self.delivered_ns >= interval_ns

    def deliver(self, now_ns: int) -> None:
        """Report the output that was not delivered yet."""
        self.delivered_ns = now_ns
        self.on_event(self.news())

    def end(self, reason: FinishReason, error: str | None, situation: Situation) -> None:
        """Report the end, with the output that was not delivered yet."""
        last = replace(
            self.news(),
            is_final=True,
            finish_reason=reason,
            error=error,
            situation=situation,
            perf=self.perf(),
        )
        self.on_event(last)

    @property
    def has_news(self) -> bool:
        return self.num_output > self.num_delivered

    def news(self) -> EngineEvent:
        """The event with the output tokens that no event had before."""
        tokens = tuple(self.tokens[len(self.request.input_ids) + self.num_delivered :])
        self.num_delivered += len(tokens)
        return EngineEvent(tokens, tuple(self.log_probs))

    def perf(self) -> EnginePerf:
        """Times and block counts at its end, which is now."""
        return EnginePerf(
            arrival_ns=self.arrival_ns,
            first_scheduled_ns=self.first_scheduled_ns,
            first_token_ns=self.first_token_ns,
            last_token_ns=time.monotonic_ns(),
            kv_alloc_total_blocks=self.table.num_new + self.table.num_reused,
            kv_alloc_new_blocks=self.table.num_new,
            kv_reused_blocks=self.table.num_reused,
        )


def check_request(request: EngineRequest, *, vocab_size: int, max_seq_len: int) -> None:
    """Raises RequestInvalid for a request that this engine can never run."""
    length = len(request.input_ids)
    if length == 0:
        raise RequestInvalid("input_ids is empty: at least one token is needed")
    if request.max_tokens < 1:
        raise RequestInvalid(f"max_tokens is {request.max_tokens}: it must be at least 1")
    if length + request.max_tokens > max_seq_len:
        raise RequestInvalid(
            f"prompt length ({length}) plus max_tokens ({request.max_tokens}) exceeds "
            f"the engine's max_seq_len ({max_seq_len})"
        )
    low, high = min(request.input_ids), max(request.input_ids)
    if low < 0 or high >= vocab_size:
        raise RequestInvalid(
            f"token id {low if low < 0 else high} is outside the vocabulary of {vocab_size}"
        )


def open_sequence(
    handle: int, request: EngineRequest, on_event: OnEvent, tools: TextTools
) -> Sequence:
    """A sequence without a slot, whose request was checked. Raises RequestInvalid."""
    ends = [request.end_id, *tools.end_stop_words(request)]
    sampler = SamplerState(
        request.sampling,
        request.input_ids,
        end_ids=ends,
        bad_words=request.bad_words,
        guide=tools.guide(request),
        is_scored=request.wants_log_probs,
    )
    stops = None
    if request.stop_words or request.stop:
        stops = StopMatcher(
            request.stop_words,
            request.stop,
            tools.decode if request.stop else None,
            request.sampling.min_tokens,
        )
    return Sequence(
        handle=handle,
        request=request,
        on_event=on_event,
        slot=NO_SLOT,
        sampler=sampler,
        stops=stops,
        tokens=list(request.input_ids),
        arrival_ns=time.monotonic_ns(),
    )
