"""What a step of this engine takes at each batch size, measured through the real way to it.

The bound of a replay counts these times, so they are measured in the same run, on the same machine
in the same mood: a few seconds before the first graph and behind the last. Of each batch size the
mean counts, not the median: a run pays for its slow steps too (one in ten took 1.3 times the
median). No prompt is one that an earlier measurement sent: the engine would have it in its cache.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import string
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from compllm.backend import Backend, GenerateRequest, Segment, collect
from compllm.catalogue import Catalogue
from compllm.errors import BackendError
from compllm.lab.engine_profile import EngineProfile, HostTimes
from compllm.types import SamplingParams, Usage

BATCH_SIZES = (1, 2, 3, 4, 6, 8)
_NUM_DECODED = 24  # tokens of a request whose steps are timed
_NUM_LETTERS = 34  # just over a cache block of 32 tokens
_PREFILL_LETTERS = (16, 48, 96)
_NUM_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class _Timed:
    usage: Usage
    latency_s: float


async def measure(backend: Backend, catalogue: Catalogue, max_width: int = 8) -> EngineProfile:
    """The times of an engine that does nothing else meanwhile, for batches up to `max_width`.

    Raises BackendError where the engine reports no times.
    """
    sizes = sorted({size for size in BATCH_SIZES if size <= max_width} | {1, 2})
    probe = _Probe(backend, catalogue, random.Random())
    await probe.ask([_NUM_LETTERS], 2)  # what the first request of a process pays for
    alone: list[_Timed] = []
    decode_ms: dict[int, list[float]] = {size: [] for size in sizes}
    prefill: list[tuple[int, float]] = []
    for _ in range(_NUM_ROUNDS):
        for letters in _PREFILL_LETTERS:
            usage = (await probe.ask([letters], 1))[0].usage
            prefill.append((usage.num_input_tokens, usage.first_token_s - usage.scheduled_s))
        for size in sizes:
            found = await probe.ask_warmed(size)
            decode_ms[size] += [
                1e3 * (each.usage.total_s - each.usage.first_token_s) / (_NUM_DECODED - 1)
                for each in found
            ]
            alone += found if size == 1 else []
    per_token_ms, fixed_ms = _line(prefill)
    host_ms = 1e3 * statistics.median(each.latency_s - each.usage.total_s for each in alone)
    half_ms = round(max(0.0, host_ms) / 2, 3)
    return EngineProfile(
        "measured",
        ((0, fixed_ms), *((size, statistics.fmean(ms)) for size, ms in decode_ms.items())),
        per_token_ms,
        host=HostTimes(to_engine_ms=half_ms, from_engine_ms=half_ms),
        note="measured by the replay itself, through the server",
    )


def mean_profile(one: EngineProfile, other: EngineProfile) -> EngineProfile:
    """Of a measurement before and one behind a run."""
    return EngineProfile(
        one.name,
        tuple((size, (ms + other.step_time_ms(size)) / 2) for size, ms in one.step_ms),
        (one.prefill_ms_per_token + other.prefill_ms_per_token) / 2,
        host=one.host,
        note=one.note + ", before and behind the graphs: their mean",
    )


def _line(points: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """ms per token of prefill, and ms that a prefill takes beside: least squares."""
    tokens, seconds = zip(*points, strict=True)
    if not all(seconds) or len(set(tokens)) < 2:
        raise BackendError(
            "the engine reports no times of its requests: a bound needs them; is its "
            "return_perf_metrics refused?"
        )
    slope, offset = np.polyfit(tokens, np.array(seconds) * 1e3, 1)
    return max(0.0, float(slope)), max(0.0, float(offset))


class _Probe:
    """Requests of known size, on all experts in turn."""

    def __init__(self, backend: Backend, catalogue: Catalogue, rng: random.Random) -> None:
        self._backend = backend
        self._experts = catalogue.experts or (catalogue.base,)
        self._rng = rng
        self._number = 0

    async def ask(self, num_letters: Iterable[int], num_tokens: int) -> list[_Timed]:
        """At once, texts that share no beginning."""
        return await self._send([self._request(each, num_tokens) for each in num_letters])

    async def ask_warmed(self, size: int) -> list[_Timed]:
        """`size` requests at once with hardly any prefill: decoding steps alone."""
        requests = [self._request(_NUM_LETTERS, _NUM_DECODED) for _ in range(size)]
        await self._send([_shortened(each) for each in requests])
        return await self._send(requests)

    def _request(self, num_letters: int, num_tokens: int) -> GenerateRequest:
        self._number += 1
        expert = self._experts[self._number % len(self._experts)]
        text = " ".join(self._rng.choices(string.ascii_uppercase, k=num_letters))
        return GenerateRequest(
            f"probe{self._number}",
            (Segment(text),),
            SamplingParams(max_tokens=num_tokens, min_tokens=num_tokens),
            expert.model,
            expert.adapter_id,
        )

    async def _send(self, requests: Sequence[GenerateRequest]) -> list[_Timed]:
        return list(await asyncio.gather(*map(self._timed, requests)))

    async def _timed(self, request: GenerateRequest) -> _Timed:
        start_s = time.monotonic()
        _, last = await collect(self._backend, request)
        return _Timed(last.usage or Usage(), time.monotonic() - start_s)


def _shortened(request: GenerateRequest) -> GenerateRequest:
    return GenerateRequest(
        f"{request.id}w",
        request.prompt,
        SamplingParams(max_tokens=1, min_tokens=1),
        request.model,
        request.adapter_id,
    )
