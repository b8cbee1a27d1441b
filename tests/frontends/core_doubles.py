"""An engine and a channel under the test's control, for a Triton model without a server."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compllm.embedded.request import EngineEvent, EngineRequest, EngineStats, OnEvent
from compllm.errors import Situation
from compllm.formats.adapters import Adapter
from compllm.formats.shape import BaseShape
from compllm.frontends.triton.core_serving import CoreModel

WAIT_S = 10.0

BASE = BaseShape(
    num_layers=2, hidden=8, intermediate=12, num_heads=2, num_kv_heads=1, head_dim=4, vocab=16
)


@dataclass
class FakeEngine:
    """Accepts everything; the test says what happens next."""

    submitted: list[tuple[EngineRequest, OnEvent]] = field(default_factory=list)
    loaded: dict[int, Adapter] = field(default_factory=dict)
    num_loads: int = 0
    cancelled: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)
    is_broken: bool = False
    num_active: int = 0
    arrived: queue.SimpleQueue[None] = field(default_factory=queue.SimpleQueue)
    compiling: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event | None = None  # holds up what compiles a guide or loads an adapter
    known_guides: frozenset[str] = frozenset()

    @property
    def task_ids(self) -> tuple[int, ...]:
        return tuple(self.loaded)

    def submit(self, request: EngineRequest, on_event: OnEvent) -> int:
        if self.is_broken:
            raise RuntimeError("out of order")
        if not self.is_guide_quick(request):
            self._wait()
        self.submitted.append((request, on_event))
        self.arrived.put(None)
        return len(self.submitted) - 1

    def cancel(self, handle: int) -> None:
        self.cancelled.put(handle)

    def is_guide_quick(self, request: EngineRequest) -> bool:
        return request.guide is None or request.guide in self.known_guides

    def _wait(self) -> None:
        if self.gate is not None:
            self.compiling.set()
            assert self.gate.wait(WAIT_S)

    def load_adapter(self, task_id: int, adapter: Adapter) -> None:
        self._wait()
        self.loaded[task_id] = adapter
        self.num_loads += 1

    def stats(self) -> EngineStats:
        return EngineStats(num_active=self.num_active)

    def close(self) -> None:
        self.closed.set()
        for _, on_event in self.submitted:
            on_event(EngineEvent(is_final=True, finish_reason="cancelled"))


@dataclass
class FakeSender:
    answers: queue.SimpleQueue[tuple[Any, bool]] = field(default_factory=queue.SimpleQueue)
    is_gone: bool = False
    gate: threading.Event | None = None
    entered: threading.Event = field(default_factory=threading.Event)
    is_over: bool = False
    was_asked_too_late: bool = False

    def send(self, tensors: dict[str, Any] | None, *, is_final: bool) -> None:
        self.entered.set()
        self.is_over = is_final
        if self.gate is not None:
            self.gate.wait(WAIT_S)
        ids = None if tensors is None else tensors["output_ids"].reshape(-1).tolist()
        self.answers.put((ids, is_final))

    def fail(self, message: str, situation: Situation) -> None:
        self.answers.put((message, situation))

    def is_cancelled(self) -> bool:
        self.was_asked_too_late |= self.is_over
        return self.is_gone

    def next(self) -> tuple[Any, bool]:
        return self.answers.get(timeout=WAIT_S)


def tensors(**more: Any) -> dict[str, Any]:
    plain = {"input_ids": [[5, 6]], "input_lengths": [2], "request_output_len": [4]}
    return {name: np.asarray(value) for name, value in (plain | more).items()}


def start(model: CoreModel, engine: FakeEngine, **more: Any) -> tuple[FakeSender, OnEvent]:
    sender = FakeSender()
    model.start("a", tensors(streaming=[True], **more), sender)
    engine.arrived.get(timeout=WAIT_S)
    return sender, engine.submitted[-1][1]
