"""Between the Triton model's callbacks and the executor: live requests, their responses, their end.

Five threads meet here. Triton's calls `start` and must not be held up, for all requests come
through it: those that need a guide compiled or weights loaded go to the opening thread. The
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
from compllm.formats.adapters import Adapter
from compllm.formats.lora_tensors import from_tensors
from compllm.formats.shape import BaseShape
from compllm.frontends.triton.core_tensors import CoreRequest, Tensors, is_stop, outputs, parse
from compllm.frontends.triton.senders import LiveRequest, Sender, Senders, WatchPeriods

_STATS_PERIOD_S = 0.1  # TensorRT-LLM's own


class Engine(Protocol):
    """What is used here of `executor.Executor`."""

    @property
    def task_ids(self) -> tuple[int, ...]: ...
    def submit(self, request: EngineRequest, on_event: OnEvent) -> int: ...
    def cancel(self, handle: int) -> None: ...
    def load_adapter(self, task_id: int, adapter: Adapter) -> None: ...
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
        cancellation_check_period_s: float = 0.01,
        on_stats: Callable[[EngineStats], None] = lambda stats: None,
    ) -> None:
        self._engine = engine
        self._base = base
        self._is_input_excluded = is_input_excluded
        self._is_lora_cache = is_lora_cache
        self._lock = threading.Lock()  # of the next two
        self._num_requests = 0
        self._coming: Counter[int | None] = Counter()  # task ids whose weights are being loaded
        self._is_closed = False
        self._loaded: dict[int, str] = {}  # hash of the weights sent, by task id
        # One thread, so that what was sent first is opened first.
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="compllm-open")
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
        except EngineError as error:
            sender.fail(str(error), situation_of(error))
            return
        task_id = request.engine.task_id
        with self._lock:
            self._num_requests += 1
            live = _Live(sender, id=request_id, request=request, number=self._num_requests)
            if request.lora_weights is not None:
                self._coming[task_id] += 1
            # A request for an adapter that is under way needs no weights of its own.
            is_slow = request.engine.guide_type is not None or self._coming[task_id] > 0
        self._senders.add(live)
        if is_slow:
            self._opener.submit(self._open_slow, live)
        else:
            self._open(live)

    def _open(self, live: _Live) -> None:
        """Submit it to the engine, or answer why not. Raises what is the engine's own fault."""
        try:
            self._load_adapter(live.request)
            live.handle = self._engine.submit(
                live.request.engine, lambda event: self._events.put((live, event))
            )
        except EngineError as error:
            self._refuse(live, str(error), situation_of(error))
            return
        except Exception as error:  # our fault, but the client must not wait for ever
            self._refuse(live, f"the engine cannot take the request: {error}")
            raise
        if live.is_cancelled:  # while its handle was not known
            self._engine.cancel(live.handle)

    def _open_slow(self, live: _Live) -> None:
        """On the opening thread, where no caller sees what it raises."""
        try:
            if live.is_cancelled or self._is_closed:
                self._events.put((live, EngineEvent(is_final=True, finish_reason="cancelled")))
            else:
                self._open(live)
        except Exception as error:
            print(f"cannot open request {live.id!r}: {error!r}", file=sys.stderr)
        finally:
            if live.request.lora_weights is not None:
                with self._lock:
                    self._coming[live.request.engine.task_id] -= 1

    def _refuse(self, live: _Live, message: str, situation: Situation = INTERNAL) -> None:
        self._senders.remove(live)
        live.fail(message, situation)

    def close(self) -> None:
        """End the engine and answer every request that still waits."""
        self._is_closed = True
        self._senders.close()
        self._engine.close()
        self._opener.shutdown()  # what still waits there ends as cancelled
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

    def _load_adapter(self, request: CoreRequest) -> None:
        weights, config, task_id = (
            request.lora_weights,
            request.lora_config,
            request.engine.task_id,
        )
        if weights is None or config is None or task_id is None:
            return
        if self._is_lora_cache and task_id in self._engine.task_ids:
            return  # TensorRT-LLM never compares contents: the first adapter of an id stays
        adapter = from_tensors(f"task-{task_id}", weights, config, self._base)
        if task_id in self._engine.task_ids and self._loaded.get(task_id) == adapter.sha256:
            return  # sent again: the requests that run with it go on
        self._engine.load_adapter(task_id, adapter)
        self._loaded[task_id] = adapter.sha256

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


def _error_text(live: _Live, event: EngineEvent) -> str:
    """TensorRT-LLM's own frame around what went wrong: clients match on its text."""
    return (
        f"Executor failed process requestId {live.number} due to the following error: {event.error}"
    )
