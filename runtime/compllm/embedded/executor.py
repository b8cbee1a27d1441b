"""The in-flight-batching loop of the embedded engine: requests in, tokens out, one step at a time.

Stands where TensorRT-LLM's executor stands: the Triton model hands it `EngineRequest`s and gets
`EngineEvent`s. Each step mixes one token of every running decode, whatever its adapter, with
chunks of prefill under a token budget; requests join and leave between steps. `scheduler.py`
decides who computes what; a request that can never fit is refused at once.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

from compllm.embedded.blocks import BlockPool
from compllm.embedded.model import Weights
from compllm.embedded.options import ExecutorOptions
from compllm.embedded.request import (
    EngineEvent,
    EngineRequest,
    EngineStats,
    OnEvent,
    StepTimes,
)
from compllm.embedded.runner import Runner, Step
from compllm.embedded.sampling import NO_TOKEN, SamplerState, StopMatcher, sample_batch
from compllm.embedded.scheduler import Scheduler, StepPlan
from compllm.embedded.sequence import Sequence, check_request
from compllm.embedded.slots import AdapterSlots, Slot
from compllm.embedded.texttools import TextTools
from compllm.errors import EngineClosed, EngineError, EngineOverloaded, situation_of
from compllm.formats.adapters import Adapter
from compllm.formats.manifest import Manifest
from compllm.types import FinishReason

TOKENS_PER_BLOCK = 32  # fixed by OpenVINO's CPU paged attention


class Executor:
    """One engine: compiled models, cache, adapters and the thread that runs steps.

    All public methods may be called from any thread. Raises EngineError when the directory is no
    engine or its adapters do not fit.
    """

    def __init__(self, engine_dir: Path, options: ExecutorOptions | None = None) -> None:
        self.options = options = options or ExecutorOptions()
        manifest = Manifest.read(engine_dir)
        manifest.verify(engine_dir)
        weights = Weights.load(engine_dir)
        self.engine_dir = engine_dir
        self.vocab_size = weights.shape.vocab
        self.max_seq_len = min(weights.max_seq_len, options.kv_cache_tokens)
        is_int8 = manifest.dtype == "int8"
        adapters = manifest.load_adapters(engine_dir, weights.shape)
        if options.is_lora_cache:
            adapters = ()
        num_slots = max(options.max_adapters, len(adapters))
        num_blocks = max(1, options.kv_cache_tokens // TOKENS_PER_BLOCK)
        self.runner = Runner(
            weights,
            num_blocks=num_blocks,
            kv_precision=options.kv_precision or ("f16" if is_int8 else "f32"),
            num_slots=num_slots,
            form=options.adapter_form,
            num_threads=options.num_threads,
        )
        self._pool = BlockPool(num_blocks, TOKENS_PER_BLOCK)
        self._scheduler = Scheduler(
            self._pool,
            max_batch_size=options.max_batch_size,
            max_num_tokens=options.max_num_tokens,
            is_prefix_reused=options.is_prefix_reused,
        )
        self._slots = AdapterSlots(num_slots)
        self.runner.set_adapters(
            {self._slots.assign(adapter.task_id).index: adapter for adapter in adapters}
        )
        self.adapter_names = {adapter.name: adapter.task_id for adapter in adapters}
        self._tools = TextTools(engine_dir, self.vocab_size)
        self._interval_ns = int(1e6 * options.stream_interval_ms)
        self._line_ends = self._tools.line_ends() if self._interval_ns else frozenset()

        self._wake = threading.Condition()
        self._inbox: deque[Sequence] = deque()
        self._cancels: deque[tuple[int, int]] = deque()  # handle, steps taken when it was asked
        self._jobs: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._next_handle = 1
        self._is_closed = False
        self._fatal: str | None = None
        self._num_tokens = self._num_steps = self._num_mixed = self._max_adapters = 0
        self._max_cancel_steps = 0
        self._histogram: Counter[int] = Counter()
        # By decodes, and whether there was prefill beside: steps, nanoseconds, tokens of prefill.
        self._step_times: dict[tuple[int, bool], tuple[int, int, int]] = {}
        self._since_ns = 0  # what the next step takes counts from here
        self._thread = threading.Thread(target=self._loop, name="compllm-engine", daemon=True)
        self._thread.start()

    # ---- for callers, any thread

    @property
    def task_ids(self) -> tuple[int, ...]:
        """Adapters that can be asked for now."""
        return self._slots.task_ids

    def submit(self, request: EngineRequest, on_event: OnEvent) -> int:
        """Queue a request. A refusal arrives as its only event, before this returns."""
        with self._wake:
            handle = self._next_handle
            self._next_handle += 1
        try:
            sequence = self._open(handle, request, on_event)
        except EngineError as error:
            on_event(_failed(error))
            return handle
        with self._wake:
            refusal = self._fatal or ("the engine is shut down" if self._is_closed else None)
            if refusal is None:
                self._inbox.append(sequence)
                self._wake.notify()
        if refusal is not None:
            self._slots.release(sequence.slot)
            on_event(_failed(EngineClosed(refusal)))
        return handle

    def cancel(self, handle: int) -> None:
        """End a request before its next step; unknown and finished ones are ignored."""
        with self._wake:
            self._cancels.append((handle, self._num_steps))
            self._wake.notify()

    def load_adapter(self, task_id: int, adapter: Adapter) -> None:
        """Make an adapter available as `task_id`, between two steps, in place of one of that id.

        Requests that run with a replaced one end with it. Raises EngineError when every slot is
        in use.
        """
        self._call(lambda: self._load_adapter(task_id, adapter))

    def remove_adapter(self, task_id: int) -> None:
        """Requests that run with it end with it; new ones are refused. Raises EngineError if
        unknown.
        """
        self._call(lambda: self._remove_adapter(task_id))

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of these ids, special tokens included."""
        return self._tools.decode(token_ids)

    def stats(self) -> EngineStats:
        """A snapshot; its numbers may be one step apart."""
        pool = self._pool
        return EngineStats(
            num_active=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting) + len(self._inbox),
            num_steps=self._num_steps,
            num_tokens_generated=self._num_tokens,
            num_mixed_steps=self._num_mixed,
            max_adapters_in_step=self._max_adapters,
            batch_histogram=tuple(sorted(self._histogram.copy().items())),
            step_times=tuple(
                StepTimes(*kind, num_steps, 1e-9 * taken_ns, num_tokens)
                for kind, (num_steps, taken_ns, num_tokens) in sorted(
                    self._step_times.copy().items()
                )
            ),
            kv_blocks_max=pool.num_blocks,
            kv_blocks_used=pool.num_used,
            kv_blocks_reused=pool.num_reused_total,
            kv_tokens_per_block=TOKENS_PER_BLOCK,
            adapters=self._slots.stats(),
            max_steps_to_cancel=self._max_cancel_steps,
        )

    def close(self) -> None:
        """Cancel what runs, stop the thread, free the models. Idempotent."""
        with self._wake:
            if self._is_closed:
                return
            self._is_closed = True
            self._wake.notify()
        self._thread.join()
        self.runner.close()

    # ---- admission, any thread

    def _open(self, handle: int, request: EngineRequest, on_event: OnEvent) -> Sequence:
        """Check everything that can be checked before queueing. Raises EngineError."""
        check_request(request, vocab_size=self.vocab_size, max_seq_len=self.max_seq_len)
        if len(self._inbox) + len(self._scheduler.waiting) >= self.options.max_queue_size:
            raise EngineOverloaded(
                f"the engine's queue is full ({self.options.max_queue_size} requests): "
                "try again later"
            )
        guide = self._tools.guide(request)
        sampler = SamplerState(
            request.sampling,
            request.input_ids,
            end_ids=[request.end_id] if request.end_id >= 0 else [],
            bad_words=request.bad_words,
            guide=guide,
            is_scored=request.wants_log_probs,
        )
        stops = None
        if request.stop_words or request.stop:
            stops = StopMatcher(
                request.stop_words,
                request.stop,
                self.decode if request.stop else None,
                request.sampling.min_tokens,
            )
        slot = self._slots.acquire(request.task_id)
        return Sequence(
            handle=handle,
            request=request,
            on_event=on_event,
            slot=slot,
            sampler=sampler,
            stops=stops,
            tokens=list(request.input_ids),
            arrival_ns=time.monotonic_ns(),
        )

    def _call(self, job: Callable[[], Any]) -> None:
        future: Future[Any] = Future()
        with self._wake:
            if self._is_closed:
                raise EngineClosed("the engine is shut down")
            self._jobs.append((job, future))
            self._wake.notify()
        future.result()

    # ---- the engine's own thread

    def _loop(self) -> None:
        try:
            while self._take_orders():
                self._scheduler.admit()
                if self._scheduler.running:
                    self._step()
        except Exception as error:
            # The thread must not die silently: each caller that waits or comes later gets a reason.
            self._fatal = f"the engine failed: {error}"
            self._end_all("error", self._fatal)
            raise
        self._end_all("cancelled", None)

    def _take_orders(self) -> bool:
        """Wait for work; apply cancels and adapter changes. False when the engine is to stop."""
        with self._wake:
            while not (
                self._inbox
                or self._jobs
                or self._cancels
                or self._scheduler.running
                or self._scheduler.waiting
            ):
                if self._is_closed:
                    return False
                self._wake.wait()
                self._since_ns = time.monotonic_ns()
            if self._is_closed:
                return False
            self._scheduler.waiting += self._inbox
            self._inbox.clear()
            cancels, self._cancels = self._cancels, deque()
            jobs, self._jobs = self._jobs, deque()
        if cancels:
            asked = dict(cancels)
            for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
                if sequence.handle in asked:
                    num_steps = self._num_steps - asked[sequence.handle]
                    self._max_cancel_steps = max(self._max_cancel_steps, num_steps)
                    self._finish(sequence, "cancelled")
        for job, future in jobs:
            try:
                future.set_result(job())
            except EngineError as error:
                future.set_exception(error)
        if jobs:
            self._since_ns = time.monotonic_ns()
        return True

    def _step(self) -> None:
        plan = self._scheduler.plan()
        step = Step()
        sampled = []
        now = time.monotonic_ns()
        if any(count > 1 for _, count in plan):  # a prefill takes long
            self._deliver_all(now)
        for sequence, count in plan:
            start = sequence.num_computed
            is_sampled = start + count == len(sequence.tokens)
            step.add(
                sequence.tokens[start : start + count],
                start,
                sequence.slot.index,
                sequence.table.blocks,
                is_sampled=is_sampled,
            )
            sequence.first_scheduled_ns = sequence.first_scheduled_ns or now
            if is_sampled:
                sampled.append(sequence)
        if not sampled:
            step.sampled.append(0)  # the graph wants one row; it is not read
        logits = self.runner.run(step)
        self._scheduler.commit(plan)
        tokens = sample_batch(logits, [each.sampler for each in sampled]) if sampled else None
        # Before anybody hears of the step: who has the last token finds it counted.
        self._count(plan)
        self._clock([count for _, count in plan])
        if sampled:
            self._deliver(sampled, tokens)

    def _clock(self, counts: list[int]) -> None:
        """Count a step that has ended and computed these tokens of its sequences."""
        now = time.monotonic_ns()
        num_decodes = counts.count(1)
        kind = num_decodes, num_decodes < len(counts)
        num_steps, taken_ns, num_tokens = self._step_times.get(kind, (0, 0, 0))
        self._step_times[kind] = (
            num_steps + 1,
            taken_ns + now - self._since_ns,
            num_tokens + sum(counts) - num_decodes,
        )
        self._since_ns = now

    def _count(self, plan: StepPlan) -> None:
        self._num_steps += 1
        self._histogram[len(plan)] += 1
        num_adapters = len({sequence.slot.index for sequence, _ in plan})
        self._max_adapters = max(self._max_adapters, num_adapters)
        self._num_mixed += num_adapters > 1

    def _deliver(self, sequences: list[Sequence], tokens: Any) -> None:
        now = time.monotonic_ns()
        for sequence, token in zip(sequences, tokens.tolist(), strict=True):
            sequence.first_token_ns = sequence.first_token_ns or now
            if token == NO_TOKEN:
                error = sequence.sampler.error or "no token is allowed here"
                self._finish(sequence, "error", error)
                continue
            reason = sequence.push(token)
            self._num_tokens += token != sequence.request.end_id
            if reason is not None:
                self._finish(sequence, reason)
            elif sequence.request.is_streamed and sequence.is_due(
                now, self._interval_ns, self._line_ends
            ):
                sequence.deliver(now)

    def _deliver_all(self, now_ns: int) -> None:
        for sequence in self._scheduler.running:
            if sequence.request.is_streamed and sequence.has_news:
                sequence.deliver(now_ns)

    def _finish(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        perf = sequence.perf()
        self._scheduler.remove(sequence)
        self._slots.release(sequence.slot)
        sequence.on_event(
            replace(
                sequence.news(),
                is_final=True,
                finish_reason=reason,
                error=error,
                perf=perf,
            )
        )

    def _end_all(self, reason: FinishReason, error: str | None) -> None:
        with self._wake:
            self._scheduler.waiting += self._inbox
            self._inbox.clear()
            jobs, self._jobs = self._jobs, deque()
            self._is_closed = True
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self._finish(sequence, reason, error)
        for _, future in jobs:
            future.set_exception(EngineClosed(error or "the engine is shut down"))

    def _load_adapter(self, task_id: int, adapter: Adapter) -> None:
        slot = self._slots.assign(task_id, self._forget)
        self.runner.set_adapter(slot.index, adapter)

    def _remove_adapter(self, task_id: int) -> None:
        self._slots.remove(task_id, self._forget)

    def _forget(self, slot: Slot) -> None:
        """A slot is free again: its weights and cached prefixes go."""
        self._pool.drop(slot.key)
        self.runner.clear_adapter(slot.index)


def _failed(error: EngineError) -> EngineEvent:
    """The only event of a request that is refused."""
    return EngineEvent(
        is_final=True, finish_reason="error", error=str(error), situation=situation_of(error)
    )
