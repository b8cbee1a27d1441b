"""Requests, responses and ends between a Triton model and an engine double."""

from __future__ import annotations

import queue
import threading
from typing import Any

import numpy as np
import pytest
from core_doubles import BASE, WAIT_S, FakeEngine, FakeSender, start, tensors

from compllm.embedded.request import EngineEvent, EngineStats
from compllm.errors import INTERNAL, INVALID, UNAVAILABLE, EngineClosed
from compllm.frontends.triton.core_serving import CoreModel


def test_each_event_becomes_a_response(model: CoreModel, engine: FakeEngine) -> None:
    sender, on_event = start(model, engine)
    on_event(EngineEvent((7,)))
    assert sender.next() == ([7], False)
    on_event(EngineEvent((8,), is_final=True, finish_reason="stop"))
    assert sender.next() == ([8], True)


def test_events_that_wait_for_a_slow_channel_go_out_as_one(
    model: CoreModel, engine: FakeEngine
) -> None:
    sender, on_event = start(model, engine)
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
    model.start("a", tensors(beam_width=[3]), sender)
    message, situation = sender.next()
    assert "beam_width" in message
    assert situation is INVALID
    assert not engine.submitted


def test_engines_error_comes_in_the_frame_of_tensorrt_llm(
    model: CoreModel, engine: FakeEngine
) -> None:
    sender, on_event = start(model, engine)
    text = "LoRA task 3 not found in cache. Please send LoRA weights with request"
    on_event(EngineEvent(is_final=True, error=text, situation=INVALID))
    expected = f"Executor failed process requestId 1 due to the following error: {text}"
    assert sender.next() == (expected, INVALID)


def test_broken_engine_answers_before_it_is_reported(model: CoreModel, engine: FakeEngine) -> None:
    engine.is_broken = True
    sender = FakeSender()
    with pytest.raises(RuntimeError, match="out of order"):
        model.start("a", tensors(), sender)
    assert sender.next() == ("the engine cannot take the request: out of order", INTERNAL)


def test_sender_is_asked_nothing_after_its_final_response(engine: FakeEngine) -> None:
    # Triton's Python backend reads freed memory then, and takes the server down.
    model = CoreModel(engine, BASE, cancellation_check_period_s=1e-6)
    for _ in range(200):
        sender, on_event = start(model, engine)
        on_event(EngineEvent(is_final=True, finish_reason="stop"))
        sender.next()
        assert not sender.was_asked_too_late
    engine.submitted.clear()
    model.close()


def test_stop_cancels_the_request_of_its_id(model: CoreModel, engine: FakeEngine) -> None:
    sender, on_event = start(model, engine)
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
    started = [start(model, engine) for _ in range(3)]
    for sender, _ in started:
        sender.is_gone = True
    assert {engine.cancelled.get(timeout=WAIT_S) for _ in started} == {0, 1, 2}


def test_engine_that_ends_by_itself_is_an_error_to_those_who_wait(engine: FakeEngine) -> None:
    model = CoreModel(engine, BASE)
    sender, _ = start(model, engine)
    model.close()
    assert sender.next() == ("the engine is shut down", UNAVAILABLE)


def test_broken_channel_cancels_its_request_and_leaves_others_alone(
    model: CoreModel, engine: FakeEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(FakeSender):
        def send(self, tensors: dict[str, Any] | None, *, is_final: bool) -> None:
            raise EngineClosed("gone")

    model.start("b", tensors(streaming=[True]), Broken())
    sender, on_event = start(model, engine)
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
    _, on_event = start(model, engine)
    while seen.get(timeout=WAIT_S).num_active != 1:
        pass
    engine.num_active = 0
    on_event(EngineEvent(is_final=True, finish_reason="stop"))
    while seen.get(timeout=WAIT_S).num_active != 0:
        pass
    engine.submitted.clear()
    model.close()
