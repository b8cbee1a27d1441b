"""Between the Triton model's callbacks and the executor: live requests, their responses, their end.

Six threads meet here. Triton's calls `start` and must not be held up, for all requests come
through it: those that need weights loaded go to the opening thread, and those with a guide that is
still to be compiled to a thread of their own, so that no client's guide holds up a plan. The
engine's only ever appends to a queue, so that it never waits for Triton; the delivering one takes
from that queue and sends. When sending falls behind, what has gathered for one request goes out as
one response. The watching one, of `senders.py`, looks for cancelled streams and publishes the
gauges.
"""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Protocol

from compllm.embedded.request import EngineEvent, EngineRequest, EngineStats, OnEvent
from compllm.errors import (
    INTERNAL,
    UNAVAILABLE,
    EngineError,
    RequestInvalid,
    Situation,
    situation_of,
)
from compllm.formats.shape import BaseShape
from compllm.frontends.triton.core_tensors import CoreRequest, Tensors, is_stop, outputs, parse
from compllm.frontends.triton.senders import LiveRequest, Sender, Senders, WatchPeriods
from compllm.frontends.triton.sent_adapters import AdapterHolder, AdapterTensors, SentAdapters

_STATS_PERIOD_S = 0.1  # TensorRT-LLM's own
_MAX_OPENING = 16  # requests that bring weights, and those with a guide to compile, at a time


class Engine(AdapterHolder, Protocol):
    """What is used here of `executor.Executor`."""

    def submit(self, request: EngineRequest, on_event: OnEvent) -> int: ...
    def cancel(self, handle: int) -> None: ...
    def is_guide_quick(self, request: EngineRequest) -> bool: ...
    def stats(self) -> EngineStats: ...
    def close(self) -> None: ...


@dataclass(slots=True, eq=False)
class _Live(LiveRequest):
    id: str = field(kw_only=True)
    request: CoreRequest = field(kw_only=True)
    number: int = field(kw_only=True)  # of the request in this process, for error texts
    handle: int | None = None  # the engine's; None until it is known


@dataclass(slots=True)
class _Gathered:
    """Events of one request that go out together."""

    token_ids: list[int] = field(default_factory=list)
    last: EngineEvent = field(default_factory=EngineEvent)

    def add(self, event: EngineEvent) -> None:
        self.token_ids += event.token_ids
        self.last = event


class CoreModel:
    """The `tensorrt_llm` model without Triton: hand it tensors and a sender."""

    def __init__(
        self,
        engine: Engine,
        base: BaseShape,
        *,
        is_input_excluded: bool = False,
        is_lora_cache: bool = False,
        max_lora_rank: int = 64,
        built_in: Callable[[int], AdapterTensors | None] = lambda task_id: None,
        cancellation_check_period_s: float = 0.01,
        on_stats: Callable[[EngineStats], None] = lambda stats: None,
    ) -> None:
        self._engine = engine
        self._is_input_excluded = is_input_excluded
        self._adapters = SentAdapters(
            engine,
            base,
            is_lora_cache=is_lora_cache,
            max_rank=max_lora_rank,
            built_in=built_in,
        )
        self._lock = threading.Lock()  # of the next three
        self._num_requests = 0
        self._coming: Counter[int | None] = Counter()  # task ids whose weights are being loaded
        self._num_compiling = 0  # requests whose guide is being compiled, or waits for that
        self._is_closed = False
        # One thread each, so that what was sent first is opened first.
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="compllm-open")
        self._guide_opener = ThreadPoolExecutor(1, thread_name_prefix="compllm-guides")
        self._events: queue.SimpleQueue[tuple[_Live, EngineEvent] | None] = queue.SimpleQueue()
        self._deliverer = threading.Thread(target=self._deliver, name="compllm-deliver")
        self._deliverer.start()
        self._senders: Senders[_Live] = Senders(
            WatchPeriods(cancellation_check_period_s, _STATS_PERIOD_S),
            on_gone=self._cancel,
            publish=lambda _: on_stats(engine.stats()),
        )

    def start(self, request_id: str, tensors: Tensors, sender: Sender) -> None:
        """Begin a request, or cancel the one of this id. Every outcome reaches the sender."""
        try:
            if is_stop(tensors):
                self._stop(request_id, sender)
                return
            request = parse(tensors, is_input_excluded=self._is_input_excluded)
            self._adapters.check_size(request)
        except EngineError as error:
            sender.fail(str(error), situation_of(error))
            return
        task_id, has_weights = request.engine.task_id, request.lora_weights is not None
        with self._lock:
            self._num_requests += 1
            live = _Live(sender, id=request_id, request=request, number=self._num_requests)
            is_full = has_weights and self._coming.total() >= _MAX_OPENING
            if has_weights and not is_full:
                self._coming[task_id] += 1
            # A request for an adapter that is under way needs no weights of its own.
            is_slow = self._coming[task_id] > 0
        self._senders.add(live)
        if is_full:
            self._refuse(live, *_full("requests with lora_weights"))
        elif is_slow:
            self._opener.submit(self._load, live)
        else:
            self._open(live)

    def _load(self, live: _Live) -> None:
        """On the opening thread: load its weights, then open it."""
        try:
            if self._is_wanted(live):
                self._guarded(live, lambda: self._adapters.load(live.request))
                if not live.is_over:
                    self._open(live)
        except Exception as error:
            print(f"cannot open request {live.id!r}: {error!r}", file=sys.stderr)
        finally:
            if live.request.lora_weights is not None:
                with self._lock:
                    self._coming -= Counter([live.request.engine.task_id])  # keeps no zeros

    def _open(self, live: _Live) -> None:
        """Submit it to the engine, or have its guide compiled first."""
        if self._engine.is_guide_quick(live.request.engine):
            self._submit(live)
            return
        with self._lock:
            is_full = self._num_compiling >= _MAX_OPENING
            self._num_compiling += not is_full
        if is_full:
            self._refuse(live, *_full("requests with a new guide"))
        else:
            self._guide_opener.submit(self._compile, live)

    def _compile(self, live: _Live) -> None:
        """On the thread of guides, where no caller sees what is raised."""
        try:
            if self._is_wanted(live):
                self._submit(live)
        except Exception as error:
            print(f"cannot open request {live.id!r}: {error!r}", file=sys.stderr)
        finally:
            with self._lock:
                self._num_compiling -= 1

    def _is_wanted(self, live: _Live) -> bool:
        """Whether it is still to be opened; if not, its end is on the way."""
        if live.is_cancelled or self._is_closed:
            self._events.put((live, EngineEvent(is_final=True, finish_reason="cancelled")))
            return False
        return True

    def _submit(self, live: _Live) -> None:
        def submit() -> None:
            live.handle = self._engine.submit(
                live.request.engine, lambda event: self._events.put((live, event))
            )

        self._guarded(live, submit)
        if live.is_cancelled and live.handle is not None:  # while its handle was not known
            self._engine.cancel(live.handle)

    def _guarded(self, live: _Live, act: Callable[[], None]) -> None:
        """Answer why it cannot be opened. Raises what is the engine's own fault."""
        try:
            act()
        except EngineError as error:
            self._refuse(live, str(error), situation_of(error))
        except Exception as error:  # our fault, but the client must not wait for ever
            self._refuse(live, f"the engine cannot take the request: {error}")
            raise

    def _refuse(self, live: _Live, message: str, situation: Situation = INTERNAL) -> None:
        self._senders.remove(live)
        live.fail(message, situation)

    def close(self) -> None:
        """End the engine and answer every request that still waits."""
        self._is_closed = True
        self._senders.close()
        self._engine.close()
        self._opener.shutdown()  # what still waits there ends as cancelled
        self._guide_opener.shutdown()
        self._events.put(None)
        self._deliverer.join()

    def _stop(self, request_id: str, sender: Sender) -> None:
        if not request_id:
            raise RequestInvalid("stop needs the id of the request that is to be stopped")
        for live in self._senders.live():
            if live.id == request_id:
                self._cancel(live)
        # An unknown id is no error: the request may have ended just now.
        sender.send(None, is_final=True)

    def _cancel(self, live: _Live) -> None:
        live.is_cancelled = True
        if live.handle is not None:
            self._engine.cancel(live.handle)

    # The delivering thread

    def _deliver(self) -> None:
        while (first := self._events.get()) is not None:
            gathered = {first[0]: _Gathered()}
            gathered[first[0]].add(first[1])
            with contextlib.suppress(queue.Empty):
                while (more := self._events.get_nowait()) is not None:
                    gathered.setdefault(more[0], _Gathered()).add(more[1])
                self._events.put(None)  # the end comes after what was gathered
            for live, events in gathered.items():
                self._answer(live, replace(events.last, token_ids=tuple(events.token_ids)))

    def _answer(self, live: _Live, event: EngineEvent) -> None:
        if event.is_final:
            self._senders.remove(live)
        try:
            self._send(live, event)
        except Exception as error:  # one client's broken channel must not silence the others
            print(f"cannot answer request {live.id!r}: {error}", file=sys.stderr)
            if not event.is_final:
                self._cancel(live)

    def _send(self, live: _Live, event: EngineEvent) -> None:
        if event.finish_reason == "cancelled" and not live.is_cancelled:
            live.fail("the engine is shut down", UNAVAILABLE)
        elif event.error is not None:
            live.fail(_error_text(live, event), event.situation)
        else:
            tensors = outputs(live.request, event)
            live.send(tensors, is_final=event.is_final)


def _full(what: str) -> tuple[str, Situation]:
    return f"{_MAX_OPENING} {what} are being opened: try again later", UNAVAILABLE


def _error_text(live: _Live, event: EngineEvent) -> str:
    """TensorRT-LLM's own frame around what went wrong: clients match on its text."""
    return (
        f"Executor failed process requestId {live.number} due to the following error: {event.error}"
    )
