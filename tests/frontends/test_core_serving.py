"""Requests, responses and ends between a Triton model and an engine double."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from compllm.embedded.request import EngineEvent, EngineRequest, EngineStats, OnEvent
from compllm.errors import INTERNAL, INVALID, UNAVAILABLE, EngineClosed, Situation
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


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def model(engine: FakeEngine) -> Iterator[CoreModel]:
    model = CoreModel(engine, BASE, cancellation_check_period_s=0.001)
    yield model
    engine.submitted.clear()  # whatever a test left open
    model.close()


def _tensors(**more: Any) -> dict[str, Any]:
    plain = {"input_ids": [[5, 6]], "input_lengths": [2], "request_output_len": [4]}
    return {name: np.asarray(value) for name, value in (plain | more).items()}


def _start(model: CoreModel, engine: FakeEngine, **more: Any) -> tuple[FakeSender, OnEvent]:
    sender = FakeSender()
    model.start("a", _tensors(streaming=[True], **more), sender)
    engine.arrived.get(timeout=WAIT_S)
    return sender, engine.submitted[-1][1]


def test_each_event_becomes_a_response(model: CoreModel, engine: FakeEngine) -> None:
    sender, on_event = _start(model, engine)
    on_event(EngineEvent((7,)))
    assert sender.next() == ([7], False)
    on_event(EngineEvent((8,), is_final=True, finish_reason="stop"))
    assert sender.next() == ([8], True)


def test_events_that_wait_for_a_slow_channel_go_out_as_one(
    model: CoreModel, engine: FakeEngine
) -> None:
    sender, on_event = _start(model, engine)
    sender.gate = threading.Event()
    on_event(EngineEvent((1,)))
    assert sender.entered.wait(WAIT_S)
    for token in (2, 3):
        on_event(EngineEvent((token,)))
    on_event(EngineEvent((4,), is_final=True, finish_reason="length"))
    sender.gate.set()
    assert [sender.next(), sender.next()] == [([1], False), ([2, 3, 4], True)]


def test_bad_request_is_the_clients_error(model: CoreModel, engine: FakeEngine) -> None:
    sender = FakeSender()
    model.start("a", _tensors(beam_width=[3]), sender)
    message, situation = sender.next()
    assert "beam_width" in message
    assert situation is INVALID
    assert not engine.submitted


def test_engines_error_comes_in_the_frame_of_tensorrt_llm(
    model: CoreModel, engine: FakeEngine
) -> None:
    sender, on_event = _start(model, engine)
    text = "LoRA task 3 not found in cache. Please send LoRA weights with request"
    on_event(EngineEvent(is_final=True, error=text, situation=INVALID))
    expected = f"Executor failed process requestId 1 due to the following error: {text}"
    assert sender.next() == (expected, INVALID)


def test_broken_engine_answers_before_it_is_reported(model: CoreModel, engine: FakeEngine) -> None:
    engine.is_broken = True
    sender = FakeSender()
    with pytest.raises(RuntimeError, match="out of order"):
        model.start("a", _tensors(), sender)
    assert sender.next() == ("the engine cannot take the request: out of order", INTERNAL)


def test_sender_is_asked_nothing_after_its_final_response(engine: FakeEngine) -> None:
    # Triton's Python backend reads freed memory then, and takes the server down.
    model = CoreModel(engine, BASE, cancellation_check_period_s=1e-6)
    for _ in range(200):
        sender, on_event = _start(model, engine)
        on_event(EngineEvent(is_final=True, finish_reason="stop"))
        sender.next()
        assert not sender.was_asked_too_late
    engine.submitted.clear()
    model.close()


def test_stop_cancels_the_request_of_its_id(model: CoreModel, engine: FakeEngine) -> None:
    sender, on_event = _start(model, engine)
    stopper = FakeSender()
    model.start("a", {"stop": np.array([True])}, stopper)
    assert stopper.next() == (None, True)
    assert engine.cancelled.get(timeout=WAIT_S) == 0
    on_event(EngineEvent(is_final=True, finish_reason="cancelled"))
    assert sender.next() == ([], True)


def test_stop_of_an_unknown_id_is_no_error(model: CoreModel, engine: FakeEngine) -> None:
    stopper = FakeSender()
    model.start("nobody", {"stop": np.array([True])}, stopper)
    assert stopper.next() == (None, True)


def test_stop_without_id_is_refused(model: CoreModel, engine: FakeEngine) -> None:
    stopper = FakeSender()
    model.start("", {"stop": np.array([True])}, stopper)
    assert "needs the id" in stopper.next()[0]


def test_closed_streams_requests_are_all_cancelled(model: CoreModel, engine: FakeEngine) -> None:
    started = [_start(model, engine) for _ in range(3)]
    for sender, _ in started:
        sender.is_gone = True
    assert {engine.cancelled.get(timeout=WAIT_S) for _ in started} == {0, 1, 2}


def test_weights_are_loaded_once_for_the_same_content(model: CoreModel, engine: FakeEngine) -> None:
    weights = np.ones((1, 1, 2 * (8 + 8)), np.float16)
    q_proj = np.array([[[1, 0, 2, 0]]], np.int32)
    sent = {"lora_task_id": [7], "lora_weights": weights, "lora_config": q_proj}
    _start(model, engine, **sent)
    _start(model, engine, **sent)
    assert engine.num_loads == 1
    assert engine.submitted[-1][0].task_id == 7


def test_other_weights_under_a_known_id_are_refused(model: CoreModel, engine: FakeEngine) -> None:
    """Any client could replace a shipped expert for everybody."""
    weights = np.ones((1, 1, 2 * (8 + 8)), np.float16)
    q_proj = np.array([[[1, 0, 2, 0]]], np.int32)
    sent = {"lora_task_id": [7], "lora_weights": weights, "lora_config": q_proj}
    _start(model, engine, **sent)
    sender = FakeSender()
    model.start("b", _tensors(**(sent | {"lora_weights": weights * 2})), sender)
    message, situation = sender.next()
    assert "under lora_task_id 7 differ from the adapter that has this id" in message
    assert situation is INVALID
    assert engine.num_loads == 1


def test_weights_larger_than_any_adapter_are_refused_at_once(
    model: CoreModel, engine: FakeEngine
) -> None:
    sender = FakeSender()
    huge = {"lora_weights": np.zeros((1, 1, 64 * 20 + 1), np.float16), "lora_task_id": [7]}
    config = np.array([[[1, 0, 2, 0]]], np.int32)
    model.start("a", _tensors(**huge, lora_config=config), sender)
    message, situation = sender.next()
    assert "takes at most 14 rows of 1280 values and rank 64" in message
    assert situation is INVALID


def test_more_uploads_than_can_be_opened_are_refused(model: CoreModel, engine: FakeEngine) -> None:
    engine.gate = threading.Event()
    config = np.array([[[1, 0, 2, 0]]], np.int32)
    weights = np.ones((1, 1, 2 * (8 + 8)), np.float16)
    senders = [FakeSender() for _ in range(17)]
    for number, sender in enumerate(senders):
        sent = {"lora_task_id": [number + 1], "lora_weights": weights, "lora_config": config}
        model.start(str(number), _tensors(**sent), sender)
    expected = "16 requests with lora_weights are being opened: try again later"
    assert senders[-1].next() == (expected, UNAVAILABLE)
    engine.gate.set()
    for _ in senders[1:]:
        engine.arrived.get(timeout=WAIT_S)


def test_like_tensorrt_llm_the_cache_keeps_what_came_first_under_an_id(engine: FakeEngine) -> None:
    model = CoreModel(engine, BASE, is_lora_cache=True)
    weights = np.ones((1, 1, 2 * (8 + 8)), np.float16)
    q_proj = np.array([[[1, 0, 2, 0]]], np.int32)
    sent = {"lora_task_id": [7], "lora_weights": weights, "lora_config": q_proj}
    _start(model, engine, **sent)
    _start(model, engine, **(sent | {"lora_weights": weights * 2}))
    assert engine.num_loads == 1
    engine.submitted.clear()
    model.close()


GUIDED = {"guided_decoding_guide_type": [b"regex"], "guided_decoding_guide": [b"[0-9]"]}


def test_request_with_a_guide_holds_up_no_other(model: CoreModel, engine: FakeEngine) -> None:
    engine.gate = threading.Event()
    model.start("guided", _tensors(**GUIDED), FakeSender())
    assert engine.compiling.wait(WAIT_S)
    _start(model, engine)
    assert [request.guide for request, _ in engine.submitted] == [None]
    engine.gate.set()
    engine.arrived.get(timeout=WAIT_S)
    assert engine.submitted[1][0].guide == "[0-9]"


def test_a_known_guide_never_waits_for_a_clients(model: CoreModel, engine: FakeEngine) -> None:
    engine.gate, engine.known_guides = threading.Event(), frozenset({"the plan's"})
    model.start("guided", _tensors(**GUIDED), FakeSender())
    assert engine.compiling.wait(WAIT_S)
    _start(model, engine, **(GUIDED | {"guided_decoding_guide": [b"the plan's"]}))
    assert [request.guide for request, _ in engine.submitted] == ["the plan's"]
    engine.gate.set()
    engine.arrived.get(timeout=WAIT_S)


def test_more_new_guides_than_can_be_compiled_are_refused(
    model: CoreModel, engine: FakeEngine
) -> None:
    engine.gate = threading.Event()
    senders = [FakeSender() for _ in range(17)]
    for number, sender in enumerate(senders):
        model.start(str(number), _tensors(**GUIDED), sender)
    expected = "16 requests with a new guide are being opened: try again later"
    assert senders[-1].next() == (expected, UNAVAILABLE)
    engine.gate.set()
    for _ in senders[1:]:
        engine.arrived.get(timeout=WAIT_S)


def test_stop_reaches_requests_that_the_engine_has_not_got_yet(
    model: CoreModel, engine: FakeEngine
) -> None:
    engine.gate = threading.Event()
    senders = [FakeSender(), FakeSender()]
    for number, sender in enumerate(senders):
        model.start(f"guided {number}", _tensors(streaming=[True], **GUIDED), sender)
    assert engine.compiling.wait(WAIT_S)
    for number in range(2):
        model.start(f"guided {number}", {"stop": np.array([True])}, FakeSender())
    engine.gate.set()
    assert senders[1].next() == ([], True)  # waited for the first: never submitted
    assert engine.cancelled.get(timeout=WAIT_S) == 0
    assert len(engine.submitted) == 1


def test_request_for_an_adapter_under_way_waits_for_it(
    model: CoreModel, engine: FakeEngine
) -> None:
    engine.gate = threading.Event()
    weights = np.ones((1, 1, 2 * (8 + 8)), np.float16)
    q_proj = np.array([[[1, 0, 2, 0]]], np.int32)
    sent = _tensors(lora_task_id=[7], lora_weights=weights, lora_config=q_proj)
    model.start("brings it", sent, FakeSender())
    assert engine.compiling.wait(WAIT_S)
    model.start("needs it", _tensors(lora_task_id=[7]), FakeSender())
    _start(model, engine)
    engine.gate.set()
    for _ in range(2):
        engine.arrived.get(timeout=WAIT_S)
    assert [request.task_id for request, _ in engine.submitted] == [None, 7, 7]


def test_broken_engine_answers_a_guided_request_too(model: CoreModel, engine: FakeEngine) -> None:
    engine.is_broken = True
    sender = FakeSender()
    model.start("a", _tensors(**GUIDED), sender)
    assert sender.next() == ("the engine cannot take the request: out of order", INTERNAL)


def test_request_that_waits_to_be_opened_hears_of_the_end(engine: FakeEngine) -> None:
    model = CoreModel(engine, BASE)
    engine.gate = threading.Event()
    senders = [FakeSender(), FakeSender()]
    for number, sender in enumerate(senders):
        model.start(f"guided {number}", _tensors(**GUIDED), sender)
    assert engine.compiling.wait(WAIT_S)
    closing = threading.Thread(target=model.close)
    closing.start()
    assert engine.closed.wait(WAIT_S)
    engine.gate.set()
    closing.join()
    assert senders[1].next() == ("the engine is shut down", UNAVAILABLE)


def test_weights_that_do_not_fit_are_the_clients_error(
    model: CoreModel, engine: FakeEngine
) -> None:
    sender = FakeSender()
    weights, config = np.zeros((1, 1, 4), np.float16), np.array([[[9, 0, 1, 0]]], np.int32)
    model.start("a", _tensors(lora_task_id=[7], lora_weights=weights, lora_config=config), sender)
    message, situation = sender.next()
    assert "lora module 9 not enabled" in message
    assert situation is INVALID


def test_engine_that_ends_by_itself_is_an_error_to_those_who_wait(engine: FakeEngine) -> None:
    model = CoreModel(engine, BASE)
    sender, _ = _start(model, engine)
    model.close()
    assert sender.next() == ("the engine is shut down", UNAVAILABLE)


def test_broken_channel_cancels_its_request_and_leaves_others_alone(
    model: CoreModel, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(FakeSender):
        def send(self, tensors: dict[str, Any] | None, *, is_final: bool) -> None:
            raise EngineClosed("gone")

    model.start("b", _tensors(streaming=[True]), Broken())
    sender, on_event = _start(model, engine)
    engine.submitted[0][1](EngineEvent((1,)))
    on_event(EngineEvent((2,)))
    assert sender.next() == ([2], False)
    assert engine.cancelled.get(timeout=WAIT_S) == 0
    assert "cannot answer request 'b'" in capsys.readouterr().err


def test_gauges_are_published_when_the_last_request_ends(engine: FakeEngine) -> None:
    seen: queue.SimpleQueue[EngineStats] = queue.SimpleQueue()
    model = CoreModel(engine, BASE, on_stats=seen.put)
    assert seen.get(timeout=WAIT_S).num_active == 0
    engine.num_active = 1
    _, on_event = _start(model, engine)
    while seen.get(timeout=WAIT_S).num_active != 1:
        pass
    engine.num_active = 0
    on_event(EngineEvent(is_final=True, finish_reason="stop"))
    while seen.get(timeout=WAIT_S).num_active != 0:
        pass
    engine.submitted.clear()
    model.close()
