"""The in-flight-batching loop of the embedded engine: requests in, tokens out, one step at a time.

Stands where TensorRT-LLM's executor stands: the Triton model hands it `EngineRequest`s and gets
`EngineEvent`s. Each step mixes one token of every running decode, whatever its adapter, with
chunks of prefill under a token budget; requests join and leave between steps. `scheduler.py`
decides who computes what; a request that can never fit is refused at once.

What goes wrong with one request ends that request. An exception of a whole step ends those that
run with an error that asks to try again; those that wait go on, with an empty cache. After
`_MAX_FAILURES` such steps in a row the engine is dead: it refuses everything and says why.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compllm.embedded.blocks import BlockPool
from compllm.embedded.counters import StepCounters
from compllm.embedded.masking import Masks
from compllm.embedded.model import Weights
from compllm.embedded.options import ExecutorOptions
from compllm.embedded.orders import Orders
from compllm.embedded.request import (
    EngineEvent,
    EngineRequest,
    EngineStats,
    OnEvent,
)
from compllm.embedded.runner import Runner, Step
from compllm.embedded.sampling import NO_TOKEN, sample_batch
from compllm.embedded.scheduler import Scheduler
from compllm.embedded.sequence import Sequence, check_request, open_sequence
from compllm.embedded.slots import AdapterSlots, Slot
from compllm.embedded.texttools import TextTools
from compllm.errors import (
    INTERNAL,
    UNAVAILABLE,
    EngineClosed,
    EngineError,
    EngineOverloaded,
    Situation,
)
from compllm.formats.adapters import Adapter
from compllm.formats.manifest import Manifest
from compllm.types import FinishReason

TOKENS_PER_BLOCK = 32  # fixed by OpenVINO's CPU paged attention
_SHUT_DOWN = "the engine is shut down"
_MAX_FAILURES = 3  # steps that fail one after another; then the engine is dead


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
        is_int8 = manifest.dtype == "int8"
        self._num_blocks = num_blocks = max(1, options.kv_cache_tokens // TOKENS_PER_BLOCK)
        # Of whole blocks: a request that needs more than there are would wait for ever.
        self.max_seq_len = min(weights.max_seq_len, num_blocks * TOKENS_PER_BLOCK)
        adapters = manifest.load_adapters(engine_dir, weights.shape)
        if options.is_lora_cache:
            adapters = ()
        num_slots = max(options.max_adapters, len(adapters))
        self.runner = Runner(
            weights,
            num_blocks=num_blocks,
            kv_precision=options.kv_precision or ("f16" if is_int8 else "f32"),
            num_slots=num_slots,
            form=options.adapter_form,
            num_threads=options.num_threads,
        )
        self._pool, self._scheduler = self._new_cache()
        self._slots = AdapterSlots(num_slots)
        self.runner.set_adapters(
            {self._slots.assign(each.task_id, is_kept=True).index: each for each in adapters}
        )
        self.adapter_names = {adapter.name: adapter.task_id for adapter in adapters}
        self._tools = TextTools(engine_dir, self.vocab_size)
        if options.is_guide_warm:
            self._tools.warm_guides()
        self._interval_ns = int(1e6 * options.stream_interval_ms)
        self._line_ends = self._tools.line_ends() if self._interval_ns else frozenset()

        self._orders = Orders()
        self._masks = Masks(self._orders.notify)
        self._is_freed = False
        self._fatal: str | None = None
        self._counters = StepCounters()
        self._thread = threading.Thread(target=self._loop, name="compllm-engine", daemon=True)
        self._thread.start()

    # ---- for callers, any thread

    @property
    def task_ids(self) -> tuple[int, ...]:
        """Adapters that can be asked for now."""
        return self._slots.task_ids

    def submit(self, request: EngineRequest, on_event: OnEvent) -> int:
        """Queue a request. A refusal arrives as its only event, before this returns."""
        handle = self._orders.new_handle()
        try:
            self._orders.check_open()
            sequence = self._open(handle, request, on_event)
        except EngineError as error:
            on_event(EngineEvent.refusal(error))
            return handle
        try:
            self._orders.add(sequence)
        except EngineClosed as error:
            self._slots.release(sequence.slot)
            on_event(EngineEvent.refusal(error))
        return handle

    def cancel(self, handle: int) -> None:
        """End a request before its next step; unknown and finished ones are ignored."""
        self._orders.cancel(handle, self._counters.num_steps)

    def load_adapter(self, task_id: int, adapter: Adapter) -> None:
        """Make an adapter available as `task_id`, between two steps, in place of one of that id.
        Requests that run with that one end with it. Raises EngineOverloaded."""
        self._orders.call(lambda: self._load_adapter(task_id, adapter))

    def remove_adapter(self, task_id: int) -> None:
        """Requests that run with it end with it; new ones are refused. Raises AdapterUnknown."""
        self._orders.call(lambda: self._remove_adapter(task_id))

    def is_guide_quick(self, request: EngineRequest) -> bool:
        """Whether `submit` has no guide to compile that may take long."""
        return self._tools.is_guide_quick(request)

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text of these ids, special tokens included."""
        return self._tools.decode(token_ids)

    def stats(self) -> EngineStats:
        """A snapshot; its numbers may be one step apart."""
        pool = self._pool
        return replace(
            self._counters.stats(),
            num_active=len(self._scheduler.running),
            num_waiting=len(self._scheduler.waiting) + self._orders.num_new,
            kv_blocks_max=pool.num_blocks,
            kv_blocks_used=pool.num_used,
            kv_blocks_reused=pool.num_reused_total,
            kv_tokens_per_block=TOKENS_PER_BLOCK,
            adapters=self._slots.stats(),
            failure=self._fatal,
        )

    def close(self) -> None:
        """Cancel what runs, stop the thread, free the models. Idempotent."""
        self._orders.close(_SHUT_DOWN)
        self._thread.join()
        if self._is_freed:
            return
        self._is_freed = True
        self._masks.close()
        self._tools.close()
        self.runner.close()

    # ---- admission, any thread

    def _open(self, handle: int, request: EngineRequest, on_event: OnEvent) -> Sequence:
        """Check everything that can be checked before queueing. Raises EngineError."""
        check_request(request, vocab_size=self.vocab_size, max_seq_len=self.max_seq_len)
        if self._orders.num_new + len(self._scheduler.waiting) >= self.options.max_queue_size:
            raise EngineOverloaded(
                f"the engine's queue is full ({self.options.max_queue_size} requests): "
                "try again later"
            )
        sequence = open_sequence(handle, request, on_event, self._tools)
        sequence.slot = self._slots.acquire(request.task_id)
        self._masks.compute_ahead(sequence)
        return sequence

    # ---- the engine's own thread

    def _loop(self) -> None:
        num_in_row = 0
        while True:
            try:
                while self._take_orders():
                    self._scheduler.admit()
                    if late := self._masks.ready_rows(self._scheduler.running):
                        self._sample(*late)
                    if any(each.late_logits is None for each in self._scheduler.running):
                        self._step()
                        num_in_row = 0
                break
            except Exception as error:
                # Each caller that waits or comes later gets a reason, and the log has it all.
                traceback.print_exc(file=sys.stderr)
                num_in_row += 1
                self._counters.num_failures += 1
                if num_in_row == _MAX_FAILURES:
                    self._die(error)
                    return
                self._start_anew(f"the engine failed in a step ({error}): try again")
        self._end_all("cancelled", None)

    def _new_cache(self) -> tuple[BlockPool, Scheduler]:
        """An empty cache, and the scheduler over it."""
        pool, options = BlockPool(self._num_blocks, TOKENS_PER_BLOCK), self.options
        scheduler = Scheduler(
            pool,
            max_batch_size=options.max_batch_size,
            max_num_tokens=options.max_num_tokens,
            is_prefix_reused=options.is_prefix_reused,
        )
        return pool, scheduler

    def _start_anew(self, reason: str) -> None:
        """End what runs; whatever a failed step left in the cache is not to be trusted."""
        ended, waiting = self._scheduler.running, self._scheduler.waiting
        self._pool, self._scheduler = self._new_cache()
        self._scheduler.waiting = waiting
        for sequence in ended:
            self._report_end(sequence, "error", reason, UNAVAILABLE)

    def _die(self, error: Exception) -> None:
        self._fatal = (
            f"the engine failed in {_MAX_FAILURES} steps one after another ({error}): "
            "start the server again"
        )
        print(f"the engine is dead: {self._fatal}", file=sys.stderr, flush=True)
        self._orders.close(self._fatal)
        self._start_anew(self._fatal)
        self._end_all("error", self._fatal)

    def _take_orders(self) -> bool:
        """Wait for work; apply cancels and adapter changes. False when the engine is to stop."""
        taken = self._orders.take(self._can_go_on, self._counters.restart_clock)
        if taken is None:
            return False
        self._scheduler.waiting += taken.sequences
        if taken.cancels:
            for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
                if sequence.handle in taken.cancels:
                    self._counters.count_cancel(taken.cancels[sequence.handle])
                    self._finish(sequence, "cancelled")
        for job, future in taken.jobs:
            try:
                future.set_result(job())
            except Exception as error:  # of the caller: what runs goes on
                future.set_exception(error)
        if taken.jobs:
            self._counters.restart_clock()
        return True

    def _can_go_on(self) -> bool:
        running = self._scheduler.running
        if not running:
            return bool(self._scheduler.waiting)
        return any(each.can_go_on for each in running)

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
        if sampled:
            sampled, logits = self._masks.keep_late(sampled, logits)
        tokens = sample_batch(logits, [each.sampler for each in sampled]) if sampled else None
        # Before anybody hears of the step: who has the last token finds it counted.
        self._counters.count_step(plan)
        if sampled:
            self._deliver(sampled, tokens)

    def _sample(self, sequences: list[Sequence], logits: NDArray[np.float32]) -> None:
        self._deliver(sequences, sample_batch(logits, [each.sampler for each in sequences]))

    def _deliver(self, sequences: list[Sequence], tokens: Any) -> None:
        now = time.monotonic_ns()
        for sequence, token in zip(sequences, tokens.tolist(), strict=True):
            sequence.first_token_ns = sequence.first_token_ns or now
            try:
                self._advance(sequence, token, now)
            except Exception as error:  # of this request: the others go on
                traceback.print_exc(file=sys.stderr)
                self._finish(sequence, "error", f"the request failed: {error!r}")

    def _advance(self, sequence: Sequence, token: int, now_ns: int) -> None:
        """Take in one sequence's token, and report it or the end where that is due."""
        if token == NO_TOKEN:
            error = sequence.sampler.error or "no token is allowed here"
            self._finish(sequence, "error", error)
            return
        reason = sequence.push(token)
        self._counters.num_tokens += token != sequence.request.end_id
        if reason is not None:
            self._finish(sequence, reason)
            return
        self._masks.compute_ahead(sequence)
        if sequence.request.is_streamed and sequence.is_due(
            now_ns, self._interval_ns, self._line_ends
        ):
            sequence.deliver(now_ns)

    def _deliver_all(self, now_ns: int) -> None:
        for sequence in self._scheduler.running:
            if sequence.request.is_streamed and sequence.has_news:
                sequence.deliver(now_ns)

    def _finish(self, sequence: Sequence, reason: FinishReason, error: str | None = None) -> None:
        self._scheduler.remove(sequence)
        self._report_end(sequence, reason, error)

    def _report_end(
        self,
        sequence: Sequence,
        reason: FinishReason,
        error: str | None,
        situation: Situation = INTERNAL,
    ) -> None:
        """Its slot is free, and its client hears of the end."""
        self._slots.release(sequence.slot)
        try:
            sequence.end(reason, error, situation)
        except Exception:  # of one client's channel: the others go on
            traceback.print_exc(file=sys.stderr)

    def _end_all(self, reason: FinishReason, error: str | None) -> None:
        left = self._orders.drain()
        self._scheduler.waiting += left.sequences
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self._scheduler.remove(sequence)
            self._report_end(sequence, reason, error, UNAVAILABLE if error else INTERNAL)
        for _, future in left.jobs:
            future.set_exception(EngineClosed(error or _SHUT_DOWN))

    def _load_adapter(self, task_id: int, adapter: Adapter) -> None:
        slot = self._slots.assign(task_id, self._forget)
        try:
            self.runner.set_adapter(slot.index, adapter)
        except BaseException:
            self._slots.remove(task_id)  # no request may run with an empty slot in its place
            raise

    def _remove_adapter(self, task_id: int) -> None:
        self._slots.remove(task_id, self._forget)

    def _forget(self, slot: Slot) -> None:
        """A slot is free again: its weights and cached prefixes go."""
        self._pool.drop(slot.key)
        self.runner.clear_adapter(slot.index)
