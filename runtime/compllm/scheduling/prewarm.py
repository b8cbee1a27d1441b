"""Prefill of the part of a prompt that is known before the rest is: beside `execute.py`.

While a node's parents decode, its system text, its sub-query and the first parent's question are
known; with each parent that ends in order, that one's response too. A request for one token of that
much fills the engine's KV blocks, so that the node itself, when its last parent ends, finds them
and computes only what came last. The same for the aggregator, with the leaves' responses folded in.

An engine that is busy pays for it in the decodes it computes meanwhile. `auto` therefore asks what
was measured of this engine: it warms only prompts of at least a prefill chunk (a shorter rest of a
prompt costs the node one step either way), only where half the engine is free, and only while the
prefill so bought stays below `max_slowdown` of the time that a decode takes. Where prefill is as
dear as it is on a few CPU cores, that is never.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any, Literal

from compllm.backend import Backend, GenerateRequest, Prompt, collect
from compllm.config import PrewarmConfig
from compllm.errors import CompllmError
from compllm.scheduling.admission import Admission
from compllm.types import SamplingParams, Usage

TOKENS_PER_BLOCK = 32  # of the KV cache, in both engines as they are built here; only full ones
_LAST = 1 << 62  # as a query's number: behind everybody who really waits
_MEMORY = 0.98  # how much of what was measured is kept at each request: some 50 count

Verdict = Literal["send", "unmeasured", "short", "busy", "dear"]
MakePrompt = Callable[[Sequence[tuple[str, str | None]]], Prompt]
CreateTask = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


@dataclass(frozen=True, slots=True)
class PrewarmStats:
    """What became of prefixes since the start."""

    num_sent: int = 0
    num_done: int = 0
    num_cancelled: int = 0  # overtaken: the whole prompt was known before the prefill had ended
    num_failed: int = 0
    num_unmeasured: int = 0  # not sent: nothing is known of this engine's speed yet
    num_short: int = 0  # not sent: no new KV block, or in `auto` less than a chunk
    num_busy: int = 0  # not sent: the engine has no room
    num_dear: int = 0  # not sent: would slow decodes by more than is allowed
    num_tokens: int = 0  # prefilled ahead, prompts of finished prewarms


def known_prefix(
    make: MakePrompt, pairs: Sequence[tuple[str, str | None]], unknown: Sequence[bool]
) -> Prompt:
    """What stands in a prompt before the first response that is `unknown`, whatever it will be.

    Made by comparing two prompts, so that the order of its parts is known to `prompts.py` alone.
    """
    one, two = (
        make(
            [
                (question, filler if is_open else response)
                for (question, response), is_open in zip(pairs, unknown, strict=True)
            ]
        )
        for filler in ("0", "1")
    )
    same = [
        first
        for first, _ in takewhile(lambda both: both[0] == both[1], zip(one, two, strict=False))
    ]
    if len(same) < min(len(one), len(two)):
        parting, other = one[len(same)], two[len(same)]
        letters = takewhile(
            lambda both: both[0] == both[1], zip(parting.text, other.text, strict=False)
        )
        same.append(replace(parting, text="".join(letter for letter, _ in letters)))
    return tuple(segment for segment in same if segment.text)


class Prewarmer:
    """Decides and sends, for all live queries."""

    def __init__(
        self, backend: Backend, admission: Admission, settings: PrewarmConfig | None = None
    ) -> None:
        self.settings = settings or PrewarmConfig()
        self._backend = backend
        self._admission = admission
        self._meters: dict[str, _Meter] = {}
        self._counts: dict[str, int] = {}

    @property
    def is_on(self) -> bool:
        return self.settings.mode != "off"

    def observe(self, request: GenerateRequest, usage: Usage) -> None:
        """Learn from a request that has ended what prefill and decode take."""
        if self.is_on and usage.num_input_tokens and usage.total_s:
            self._meter(request.model).add(num_chars(request.prompt), usage)

    def estimate_tokens(self, model: str, num_chars: int) -> int:
        """About as many; 0 before anything was measured. Counting them would cost as much as
        tokenising the whole prompt again."""
        return int(num_chars * self._meter(model).tokens_per_char)

    def is_out_of_question(self, model: str, num_chars: int) -> bool:
        """Whether a prefix of so many characters is refused whatever else it is, counted; so that
        nobody makes it, which costs more than all else that a node costs here."""
        if self.settings.mode != "auto":
            return False
        is_measured = self._meter(model).is_measured
        if is_measured and self.estimate_tokens(model, num_chars) >= self.settings.min_tokens:
            return False
        self._count("short" if is_measured else "unmeasured")
        return True

    def judge(self, request: GenerateRequest, num_warm: int) -> Verdict:
        """Whether to send it, counted. num_warm: its tokens that were warmed before."""
        verdict = self._verdict(request, num_warm)
        if verdict != "send":
            self._count(verdict)
        return verdict

    async def send(self, request: GenerateRequest) -> None:
        """Prefill this prompt. Its failure is nobody's: the node will say what is wrong."""
        self._count("sent")
        try:
            async with self._admission.slot(request.model, _LAST, 0, 0.0):
                _, last = await collect(self._backend, request)
        except CompllmError:
            self._count("failed")
        except asyncio.CancelledError:
            self._count("cancelled")
            raise
        else:
            self._count("done")
            self._count("tokens", (last.usage or Usage()).num_input_tokens)

    def stats(self) -> PrewarmStats:
        """Counters so far."""
        return PrewarmStats(**{f"num_{what}": number for what, number in self._counts.items()})

    def _verdict(self, request: GenerateRequest, num_warm: int) -> Verdict:
        settings, meter = self.settings, self._meter(request.model)
        num_tokens = self.estimate_tokens(request.model, num_chars(request.prompt))
        num_blocks = num_tokens // TOKENS_PER_BLOCK - num_warm // TOKENS_PER_BLOCK
        load = self._admission.load(request.model)
        is_full = load.num_in_flight >= load.limit
        if settings.mode == "on":
            if is_full:
                return "busy"
            return "send" if num_blocks > 0 or not meter.is_measured else "short"
        if not meter.is_measured:
            return "unmeasured"
        if num_blocks <= 0 or num_tokens - num_warm < settings.min_tokens:
            return "short"
        if is_full or 2 * load.num_in_flight > load.limit:
            return "busy"
        cost_s = (num_tokens - num_warm) * meter.prefill_token_s
        now_s = asyncio.get_running_loop().time()
        # Somebody always decodes meanwhile: a parent, though it may not have its place yet.
        if not meter.spend(cost_s, settings.max_slowdown, now_s):
            return "dear"
        return "send"

    def _meter(self, model: str) -> _Meter:
        return self._meters.setdefault(model, _Meter())

    def _count(self, what: str, number: int = 1) -> None:
        self._counts[what] = self._counts.get(what, 0) + number


class Warming:
    """The prefixes of one query on their way. `create_task`: of the query's own task group."""

    def __init__(self, prewarmer: Prewarmer, query_id: str, create_task: CreateTask) -> None:
        self._prewarmer = prewarmer
        self._query_id = query_id
        self._create_task = create_task
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._num_warm: dict[int, int] = {}  # tokens of the longest prefix sent so far

    @property
    def is_on(self) -> bool:
        return self._prewarmer.is_on

    def is_out_of_question(self, model: str, num_chars: int) -> bool:
        return self._prewarmer.is_out_of_question(model, num_chars)

    def offer(self, node_id: int, prompt: Prompt, model: str, adapter_id: int | None) -> None:
        """The prompt of this node begins so."""
        task = self._tasks.get(node_id)
        if not prompt or (task is not None and not task.done()):
            return  # a prefill under way: the next parent's end will offer more
        num_warm = self._num_warm.get(node_id, 0)
        request = GenerateRequest(
            f"{self._query_id}-warm{node_id}-{num_warm}",
            prompt,
            SamplingParams(max_tokens=1),
            model,
            adapter_id,
        )
        if self._prewarmer.judge(request, num_warm) == "send":
            num_tokens = self._prewarmer.estimate_tokens(model, num_chars(prompt))
            self._num_warm[node_id] = num_tokens
            self._tasks[node_id] = self._create_task(self._prewarmer.send(request))

    def drop(self, node_id: int) -> None:
        """The node starts: what is not warm by now it computes sooner itself."""
        if (task := self._tasks.pop(node_id, None)) is not None:
            task.cancel()

    def drop_all(self) -> None:
        for node_id in tuple(self._tasks):
            self.drop(node_id)
        self._num_warm.clear()


@dataclass(slots=True)
class _Meter:
    """What one engine's finished requests took: sums in which the older ones fade."""

    num_chars: float = 0.0
    num_tokens: float = 0.0
    prefill_s: float = 0.0
    num_prefilled: float = 0.0  # tokens, without those found in the cache
    decode_s: float = 0.0
    num_decodes: float = 0.0
    credit_s: float = 0.0  # prefill that may be bought ahead now
    credit_at_s: float = field(default=float("-inf"))

    @property
    def is_measured(self) -> bool:
        return self.num_prefilled > 0

    @property
    def tokens_per_char(self) -> float:
        return self.num_tokens / self.num_chars if self.num_chars else 0.0

    @property
    def prefill_token_s(self) -> float:
        """Of a whole prefill, its fixed part too: rather too dear than too cheap."""
        return self.prefill_s / self.num_prefilled

    def add(self, num_chars: int, usage: Usage) -> None:
        for name in (
            "num_chars",
            "num_tokens",
            "prefill_s",
            "num_prefilled",
            "decode_s",
            "num_decodes",
        ):
            setattr(self, name, _MEMORY * getattr(self, name))
        self.num_chars += num_chars
        self.num_tokens += usage.num_input_tokens
        self.prefill_s += max(0.0, usage.first_token_s - usage.scheduled_s)
        reused = usage.kv_reused_blocks * TOKENS_PER_BLOCK
        self.num_prefilled += max(1, usage.num_input_tokens - reused)
        self.decode_s += max(0.0, usage.total_s - usage.first_token_s)
        self.num_decodes += 1

    def spend(self, cost_s: float, share: float, now_s: float) -> bool:
        """Whether so much prefill may run beside decodes now. Credit grows with time, up to the
        share of one mean decode: nobody who decodes meets more than that at once."""
        most_s = share * self.decode_s / self.num_decodes
        self.credit_s = min(most_s, self.credit_s + share * (now_s - self.credit_at_s))
        self.credit_at_s = now_s
        if cost_s > self.credit_s:
            return False
        self.credit_s -= cost_s
        return True


def num_chars(prompt: Prompt) -> int:
    return sum(len(segment.text) for segment in prompt)
