"""A whole replay: the engine measured, the graphs run, the engine measured again; then the lines.

What has ended when a run is broken off is kept: `lines` gives it at any time.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any

from compllm.errors import BackendUnavailable
from compllm.lab.engine_profile import EngineProfile
from compllm.lab.replay.counters import (
    Samples,
    TimedSteps,
    Window,
    client_counters,
    engine_counters,
    read_samples,
    timed_steps,
    windows_of,
)
from compllm.lab.replay.drive import OnRan, Ran, ReplaySettings, replay
from compllm.lab.replay.graphs import ReplayGraph
from compllm.lab.replay.records import make_record, summarise
from compllm.lab.replay.runner import ReplayLLM
from compllm.lab.replay.step_times import BATCH_SIZES, mean_profile, measure


class ReplaySession:
    """Graphs to be replayed once. window_s: between two readings of the engine's counters."""

    def __init__(
        self,
        graphs: Sequence[ReplayGraph],
        settings: ReplaySettings,
        metrics_url: str | None = None,
        window_s: float = 3.0,
    ) -> None:
        self.graphs = graphs
        self.settings = settings
        self.ran: list[Ran] = []
        self.profile: EngineProfile | None = None
        self.steps: tuple[TimedSteps, ...] = ()  # of the engine, while the graphs ran
        self.windows: tuple[Window, ...] = ()  # the same every few seconds, where there is a rate
        self._metrics_url, self._window_s = metrics_url, window_s
        self._counters: dict[str, Any] = {"engine": None, "client": None}
        self._start_s = self._wall_s = 0.0

    @property
    def num_failed(self) -> int:
        return sum(ran.error is not None for ran in self.ran)

    async def run(self, llm: ReplayLLM, on_ran: OnRan = lambda _: None) -> None:
        """`llm` is open. Raises CompllmError; `lines` has what ended before."""

        def ended(ran: Ran) -> None:
            self.ran.append(ran)
            self._wall_s = time.monotonic() - self._start_s
            on_ran(ran)

        await llm.warm_up([self.graphs[0].question])
        self.profile = before = await self._measured(llm)
        samples = await self._settled_samples()
        self._start_s = time.monotonic()
        # A query by itself is not disturbed.
        is_loaded = self.settings.rate_qps is not None
        readings = [(0.0, samples)] if samples is not None and is_loaded else []
        watching = asyncio.create_task(self._watch(readings))
        try:
            await replay(llm, self.graphs, self.settings, ended)
        finally:
            watching.cancel()
            self._counters["client"] = client_counters(llm)
        if samples is not None and (behind := await self._settled_samples()) is not None:
            self._counters["engine"] = engine_counters(samples, behind)
            self.steps = timed_steps(samples, behind)
            if readings:
                self.windows = windows_of([*readings, (self._elapsed_ms(), behind)])
        self.profile = mean_profile(before, await self._measured(llm))

    def lines(self) -> Iterator[str]:
        """A record for each graph that has ended, in the order of the file; last the summary."""
        ran = sorted(self.ran, key=lambda each: each.index)
        records = [make_record(each, self.settings, self.profile) for each in ran]
        for record in records:
            yield json.dumps(record, ensure_ascii=False) + "\n"
        summary = summarise(
            records,
            self.settings,
            num_graphs=len(self.graphs),
            wall_s=self._wall_s,
            profile=self.profile,
            counters=self._counters,
        )
        yield json.dumps({"summary": summary}, ensure_ascii=False) + "\n"

    async def _measured(self, llm: ReplayLLM) -> EngineProfile:
        settings = self.settings
        is_alone = settings.concurrency == 1 and settings.rate_qps is None
        # Its nodes and the plan run together, or whatever others have under way.
        most = 1 + max(graph.width for graph in self.graphs) if is_alone else max(BATCH_SIZES)
        return await measure(llm.forced.inner, llm.catalogue, most)

    async def _watch(self, readings: list[tuple[float, Samples]]) -> None:
        """Adds to the readings until it is cancelled; nothing where there is no first."""
        while readings:
            await asyncio.sleep(self._window_s)
            if (samples := await self._samples()) is not None:
                readings.append((self._elapsed_ms(), samples))

    async def _settled_samples(self) -> Samples | None:
        if self._metrics_url is not None:
            # The engine publishes its counters a little after the last answer.
            await asyncio.sleep(_SETTLE_S)
        return await self._samples()

    async def _samples(self) -> Samples | None:
        if self._metrics_url is None:
            return None
        try:
            return await asyncio.to_thread(read_samples, self._metrics_url)
        except BackendUnavailable:
            return None  # counters are no reason to lose a run

    def _elapsed_ms(self) -> float:
        return 1e3 * (time.monotonic() - self._start_s)


_SETTLE_S = 0.5
