"""Requests, responses and ends between a Triton model and the path on a scripted engine."""

from __future__ import annotations

import asyncio
import queue
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from path_parts import CATALOGUE, DIAMOND, node_reply, plan_reply, settings

from compllm.assembly import RuntimeStats
from compllm.backend import Backend
from compllm.errors import BackendRejected, BackendUnavailable, ConfigError, Situation
from compllm.frontends.triton import comp_llm_serving
from compllm.frontends.triton.comp_llm_serving import QueryEnd, QueryModel, Runtime
from compllm.frontends.triton.lazy_path import LazyPath
from compllm.pipeline import CompLLM
from compllm.testing import HashingEncoder, Reply, ScriptedBackend

WAIT_S = 10.0
QUESTION = "What is the atomic number of iron?"
TWO = "What are the atomic numbers of iron and neon?"
PLAN = plan_reply(f"1 | {QUESTION}")


@dataclass
class FakeSender:
    answers: queue.SimpleQueue[tuple[Any, ...]] = field(default_factory=queue.SimpleQueue)
    is_gone: bool = False
    is_over: bool = False
    was_used_too_late: bool = False
    is_broken: bool = False

    def send(self, tensors: dict[str, Any], *, is_final: bool) -> None:
        self._use(is_final)
        if self.is_broken:
            raise RuntimeError("no memory is left")
        self.answers.put(({name: each[0, 0].decode() for name, each in tensors.items()}, is_final))

    def fail(self, message: str, situation: Situation) -> None:
        self._use(True)
        self.answers.put((message, situation.triton_code))

    def is_cancelled(self) -> bool:
        self._use(self.is_over)
        return self.is_gone

    def next(self) -> tuple[Any, ...]:
        return self.answers.get(timeout=WAIT_S)

    def _use(self, is_over: bool) -> None:
        self.was_used_too_late |= self.is_over
        self.is_over = is_over


class Model:
    """A model on this script, which also runs calls on the thread of its loop."""

    def __init__(self, *replies: Reply, connect: Callable[[], Awaitable[Backend]] | None = None):
        self.scripted = ScriptedBackend(*replies)
        self._connect = connect
        self.loads: queue.SimpleQueue[tuple[int, RuntimeStats | None]] = queue.SimpleQueue()
        self.ends: queue.SimpleQueue[QueryEnd] = queue.SimpleQueue()
        self.model = QueryModel(self._load, lambda *load: self.loads.put(load), self.ends.put)

    async def _load(self) -> Runtime:
        self._loop = asyncio.get_running_loop()
        return Runtime(settings(), LazyPath(self._open_path))

    @asynccontextmanager
    async def _open_path(self) -> AsyncIterator[CompLLM]:
        backend = await self._connect() if self._connect else self.scripted
        async with CompLLM(backend, HashingEncoder(), CATALOGUE, settings()) as llm:
            yield llm

    def ask(self, sender: FakeSender | None = None, text: str = QUESTION, **more: Any) -> Any:
        sender = sender or FakeSender()
        scalars = {name: np.array([[value]]) for name, value in more.items()}
        tensors = {"text_input": np.array([[text.encode()]], np.object_), **scalars}
        self.model.start(tensors, {}, sender)
        return sender

    def wait_for(self, contains: str, count: int = 1) -> None:
        arrived = self.scripted.wait_for(contains, count)
        asyncio.run_coroutine_threadsafe(arrived, self._loop).result(WAIT_S)

    def set(self, event: asyncio.Event) -> None:
        self._loop.call_soon_threadsafe(event.set)

    def until_published(self, num_queries: int, num_in_flight: int) -> None:
        """Wait for this load of the queue."""
        while True:
            published, stats = self.loads.get(timeout=WAIT_S)
            in_flight = stats and stats.engines["tensorrt_llm"].num_in_flight
            if (published, in_flight) == (num_queries, num_in_flight):
                return

    def outcomes(self) -> list[str]:
        """Of all requests, once each has ended."""
        for each in self.scripted.requests:
            asyncio.run_coroutine_threadsafe(each.ended.wait(), self._loop).result(WAIT_S)
        return [each.outcome for each in self.scripted.requests]


@contextmanager
def opened(*replies: Reply, **more: Any) -> Iterator[Model]:
    model = Model(*replies, **more)
    try:
        yield model
    finally:
        model.model.close()


def test_answer_is_one_response_unless_streamed() -> None:
    with opened(PLAN, node_reply(QUESTION, "26")) as model:
        tensors, is_final = model.ask().next()
        assert (tensors["text_output"], tensors["finish_reason"]) == ("26", "stop")
        assert set(tensors) == {"text_output", "finish_reason", "plan_json", "stats_json"}
        assert is_final


def test_streamed_answer_comes_piece_by_piece() -> None:
    nodes = [
        node_reply(f"What is the atomic number of {name}?", number)
        for name, number in (("iron", "26"), ("neon", "10"))
    ]
    answer = Reply(("36", " it is"), contains=f"{TWO}\n\nKnown facts")
    with opened(plan_reply(*DIAMOND[:2]), answer, *nodes) as model:
        sender = model.ask(text=TWO, stream=True)
        responses = [sender.next() for _ in range(4)]
    assert [each["text_output"] for each, _ in responses] == ["", "36", " it is", ""]
    assert "plan_json" in responses[0][0]
    assert [is_final for _, is_final in responses] == [False, False, False, True]


def test_many_questions_are_answered_side_by_side() -> None:
    with opened(PLAN, node_reply(QUESTION, "26")) as model:
        senders = [model.ask() for _ in range(64)]
        assert {sender.next()[0]["text_output"] for sender in senders} == {"26"}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"text": " \n"}, "the question is empty"),
        ({"text": "x" * 9000}, "the question has 9000 characters, at most 8000 are allowed"),
    ],
)
def test_bad_question_is_the_clients_error(more: dict[str, Any], said: str) -> None:
    with opened() as model:
        message, code = model.ask(**more).next()
    assert said in message
    assert code == "INVALID_ARG"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BackendUnavailable("nobody is there"), "UNAVAILABLE"),
        (BackendRejected("too long"), "INVALID_ARG"),
    ],
)
def test_engines_error_has_its_code(error: Any, code: str) -> None:
    """In its text too where it is no fault of the request: HTTP answers 400 to all of them."""
    with opened(PLAN, Reply(error=error)) as model:
        text = str(error) if code == "INVALID_ARG" else f"{code}: {error}"
        assert model.ask().next() == (text, code)


def test_our_own_defect_is_answered_and_the_next_question_too(
    capfd: pytest.CaptureFixture[str],
) -> None:
    broken = Reply(contains="defect", match=lambda request: 1 / 0 > 0)
    with opened(broken, PLAN, node_reply(QUESTION, "26")) as model:
        message, code = model.ask(text="a defect?").next()
        assert "ZeroDivisionError" in message
        assert code == "INTERNAL"
        assert model.ask().next()[0]["text_output"] == "26"
    assert "Traceback" in capfd.readouterr().err


def test_client_who_left_cancels_the_engines_request() -> None:
    gate = asyncio.Event()
    with opened(PLAN, node_reply(QUESTION, "26", gate=gate)) as model:
        sender = model.ask()
        model.wait_for(f"user\n{QUESTION}")
        sender.is_gone = True
        assert sender.next() == ("CANCELLED: the request was cancelled", "CANCELLED")
        assert model.outcomes() == ["done", "cancelled"]


def test_client_who_left_disturbs_no_other() -> None:
    gate = asyncio.Event()
    with opened(PLAN, node_reply(QUESTION, "26", gate=gate)) as model:
        senders = [model.ask() for _ in range(3)]
        model.wait_for(f"user\n{QUESTION}", 3)
        senders[1].is_gone = True
        assert senders[1].next()[1] == "CANCELLED"
        model.set(gate)
        assert [senders[k].next()[0]["text_output"] for k in (0, 2)] == ["26", "26"]


def test_deadline_reaches_the_engine() -> None:
    with opened(plan_reply(gate=asyncio.Event())) as model:
        model.until_published(0, 0)  # it is connected
        message, code = model.ask(deadline_ms=20).next()
        assert message == "DEADLINE_EXCEEDED: the deadline of 0.02 s is over"
        assert code == "UNAVAILABLE"
        assert model.outcomes() == ["cancelled"]


def test_end_of_each_request_is_reported_without_its_question() -> None:
    with opened(PLAN, node_reply(QUESTION, "26")) as model:
        model.ask().next()
        done = model.ends.get(timeout=WAIT_S)
        tensors = {"text_input": np.array([[b" "]], np.object_)}
        model.model.start(tensors, {}, FakeSender(), "mine\n")
        refused = model.ends.get(timeout=WAIT_S)
    assert (done.status, done.num_nodes, len(done.id)) == ("stop", 1, 32)
    assert re.fullmatch(r"query [0-9a-f]{32} stop \d+ ms nodes 1", str(done))
    assert re.fullmatch(r'query "mine\\n" INVALID_ARGUMENT \d+ ms nodes -', str(refused))


def test_missed_deadline_is_reported_as_one() -> None:
    with opened(plan_reply(gate=asyncio.Event())) as model:
        model.until_published(0, 0)  # it is connected
        model.ask(deadline_ms=20).next()
        assert model.ends.get(timeout=WAIT_S).status == "DEADLINE_EXCEEDED"


def test_deadline_holds_while_the_engine_is_not_ready() -> None:
    async def never() -> Backend:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    with opened(connect=never) as model:
        message, code = model.ask(deadline_ms=20).next()
    assert "0.02 s is over, and the engine is not ready yet" in message
    assert code == "UNAVAILABLE"


def test_engine_that_is_not_there_is_named() -> None:
    async def away() -> Backend:
        raise BackendUnavailable("no ready server at 127.0.0.1:8001 within 10 s: refused")

    with opened(connect=away) as model:
        assert "no ready server at" in model.ask().next()[0]


def test_sender_is_asked_nothing_after_its_final_response() -> None:
    # Triton's Python backend reads freed memory then, and takes the server down.
    with opened(PLAN, node_reply(QUESTION, "26")) as model:
        senders = [model.ask() for _ in range(200)]
        for sender in senders:
            sender.next()
    assert not any(sender.was_used_too_late for sender in senders)


def test_broken_channel_ends_its_own_request_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with opened(PLAN, node_reply(QUESTION, "26")) as model:
        model.ask(FakeSender(is_broken=True), stream=True)
        assert model.ask().next()[0]["text_output"] == "26"
    assert "no memory is left" in capfd.readouterr().err


def test_closing_answers_everybody_who_still_waits() -> None:
    with opened(PLAN, node_reply(QUESTION, gate=asyncio.Event())) as model:
        senders = [model.ask() for _ in range(3)]
        model.wait_for(f"user\n{QUESTION}", 3)
    cancelled = ("CANCELLED: the request was cancelled", "CANCELLED")
    assert {sender.next() for sender in senders} == {cancelled}
    assert model.scripted.is_closed


def test_load_of_the_queues_is_published_up_to_the_last_end() -> None:
    gate = asyncio.Event()
    with opened(PLAN, node_reply(QUESTION, "26", gate=gate)) as model:
        model.until_published(0, 0)  # once it is connected, before any question
        sender = model.ask()
        model.until_published(1, 1)
        model.set(gate)
        assert sender.next()
        model.until_published(0, 0)


def test_live_queries_are_published_before_the_engine_is_ready() -> None:
    async def never() -> Backend:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    with opened(connect=never) as model:
        sender = model.ask()
        while (published := model.loads.get(timeout=WAIT_S))[0] != 1:
            pass
    assert published == (1, None)
    assert sender.next()[1] == "CANCELLED"


def test_closing_at_once_answers_even_who_was_not_begun() -> None:
    with opened(PLAN, node_reply(QUESTION, "26")) as model:
        sender = model.ask()
    assert sender.next()


def test_model_that_cannot_load_says_why_and_leaves_no_thread() -> None:
    async def load() -> Runtime:
        raise ConfigError("no sentence encoder")

    with pytest.raises(ConfigError, match="no sentence encoder"):
        QueryModel(load)
    assert "compllm-loop" not in {thread.name for thread in threading.enumerate()}


async def test_a_key_that_is_not_set_is_an_error_of_the_loading(tmp_path: Path) -> None:
    """Not of each later query: `expert add` then takes its changes back."""
    (tmp_path / "compllm.toml").write_text(
        '[catalogue.base]\nsystem = "Answer."\n'
        '[catalogue.router]\nthreshold = 0.3\nencoder = "e"\n'
        '[[catalogue.experts]]\nname = "wine"\ndomain = "wine"\nexamples = ["What is port?"]\n'
        'url = "http://127.0.0.1:9"\nmodel = "big"\nkey_env = "NO_SUCH_KEY"\n'
    )
    with pytest.raises(ConfigError, match="NO_SUCH_KEY, which is not set"):
        await comp_llm_serving.load("", str(tmp_path / "compllm.toml"))
