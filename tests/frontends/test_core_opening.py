"""Requests that the model opens before the engine has them: guides to compile, adapters to load."""

from __future__ import annotations

import threading

import numpy as np
from core_doubles import BASE, WAIT_S, FakeEngine, FakeSender, start, tensors

from compllm.errors import INTERNAL, INVALID, UNAVAILABLE
from compllm.frontends.triton.core_serving import CoreModel


def test_weights_are_loaded_once_for_the_same_content(model: CoreModel, engine: FakeEngine) -> None:
    weights = np.ones((1, 1, 2 * (8 + 8)), np.float16)
    q_proj = np.array([[[1, 0, 2, 0]]], np.int32)
    sent = {"lora_task_id": [7], "lora_weights": weights, "lora_config": q_proj}
    start(model, engine, **sent)
    start(model, engine, **sent)
    assert engine.num_loads == 1
    assert engine.submitted[-1][0].task_id == 7


def test_other_weights_under_a_known_id_are_refused(model: CoreModel, engine: FakeEngine) -> None:
    """Any client could replace a shipped expert for everybody."""
    weights = np.ones((1, 1, 2 * (8 + 8)), np.float16)
    q_proj = np.array([[[1, 0, 2, 0]]], np.int32)
    sent = {"lora_task_id": [7], "lora_weights": weights, "lora_config": q_proj}
    start(model, engine, **sent)
    sender = FakeSender()
    model.start("b", tensors(**(sent | {"lora_weights": weights * 2})), sender)
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
    model.start("a", tensors(**huge, lora_config=config), sender)
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
        model.start(str(number), tensors(**sent), sender)
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
    start(model, engine, **sent)
    start(model, engine, **(sent | {"lora_weights": weights * 2}))
    assert engine.num_loads == 1
    engine.submitted.clear()
    model.close()


GUIDED = {"guided_decoding_guide_type": [b"regex"], "guided_decoding_guide": [b"[0-9]"]}


def test_request_with_a_guide_holds_up_no_other(model: CoreModel, engine: FakeEngine) -> None:
    engine.gate = threading.Event()
    model.start("guided", tensors(**GUIDED), FakeSender())
    assert engine.compiling.wait(WAIT_S)
    start(model, engine)
    assert [request.guide for request, _ in engine.submitted] == [None]
    engine.gate.set()
    engine.arrived.get(timeout=WAIT_S)
    assert engine.submitted[1][0].guide == "[0-9]"


def test_a_known_guide_never_waits_for_a_clients(model: CoreModel, engine: FakeEngine) -> None:
    engine.gate, engine.known_guides = threading.Event(), frozenset({"the plan's"})
    model.start("guided", tensors(**GUIDED), FakeSender())
    assert engine.compiling.wait(WAIT_S)
    start(model, engine, **(GUIDED | {"guided_decoding_guide": [b"the plan's"]}))
    assert [request.guide for request, _ in engine.submitted] == ["the plan's"]
    engine.gate.set()
    engine.arrived.get(timeout=WAIT_S)


def test_more_new_guides_than_can_be_compiled_are_refused(
    model: CoreModel, engine: FakeEngine
) -> None:
    engine.gate = threading.Event()
    senders = [FakeSender() for _ in range(17)]
    for number, sender in enumerate(senders):
        model.start(str(number), tensors(**GUIDED), sender)
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
        model.start(f"guided {number}", tensors(streaming=[True], **GUIDED), sender)
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
    sent = tensors(lora_task_id=[7], lora_weights=weights, lora_config=q_proj)
    model.start("brings it", sent, FakeSender())
    assert engine.compiling.wait(WAIT_S)
    model.start("needs it", tensors(lora_task_id=[7]), FakeSender())
    start(model, engine)
    engine.gate.set()
    for _ in range(2):
        engine.arrived.get(timeout=WAIT_S)
    assert [request.task_id for request, _ in engine.submitted] == [None, 7, 7]


def test_broken_engine_answers_a_guided_request_too(model: CoreModel, engine: FakeEngine) -> None:
    engine.is_broken = True
    sender = FakeSender()
    model.start("a", tensors(**GUIDED), sender)
    assert sender.next() == ("the engine cannot take the request: out of order", INTERNAL)


def test_request_that_waits_to_be_opened_hears_of_the_end(engine: FakeEngine) -> None:
    model = CoreModel(engine, BASE)
    engine.gate = threading.Event()
    senders = [FakeSender(), FakeSender()]
    for number, sender in enumerate(senders):
        model.start(f"guided {number}", tensors(**GUIDED), sender)
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
    model.start("a", tensors(lora_task_id=[7], lora_weights=weights, lora_config=config), sender)
    message, situation = sender.next()
    assert "lora module 9 not enabled" in message
    assert situation is INVALID
