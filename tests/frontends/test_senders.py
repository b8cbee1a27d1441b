"""The live requests of a Triton model: when they are asked, and what is published of them."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from compllm.errors import CANCELLED, TIMED_OUT, Situation
from compllm.frontends.triton.senders import LiveRequest, Senders, TritonSender, WatchPeriods

WAIT_S = 10.0
QUICK = WatchPeriods(check_s=0.001, publish_s=0.001)


@dataclass
class Client:
    sent: list[Any] = field(default_factory=list)
    is_gone: bool = False
    num_asked: int = 0

    def send(self, tensors: dict[str, Any] | None, *, is_final: bool) -> None:
        self.sent.append((tensors, is_final))

    def fail(self, message: str, situation: Situation) -> None:
        self.sent.append((message, situation))

    def is_cancelled(self) -> bool:
        self.num_asked += 1
        return self.is_gone


@dataclass
class Watched:
    """Senders, with what they report."""

    gone: queue.SimpleQueue[LiveRequest] = field(default_factory=queue.SimpleQueue)
    published: queue.SimpleQueue[int] = field(default_factory=queue.SimpleQueue)

    @contextmanager
    def open(self, periods: WatchPeriods = QUICK) -> Iterator[Senders[LiveRequest]]:
        senders: Senders[LiveRequest] = Senders(periods, self.gone.put, self.published.put)
        try:
            yield senders
        finally:
            senders.close()

    def until_published(self, number: int) -> None:
        while self.published.get(timeout=WAIT_S) != number:
            pass


def add(senders: Senders[LiveRequest], count: int) -> list[tuple[LiveRequest, Client]]:
    clients = [Client() for _ in range(count)]
    added = [(LiveRequest(client), client) for client in clients]
    for live, _ in added:
        senders.add(live)
    return added


def test_nothing_is_sent_or_asked_after_the_final_response() -> None:
    client = Client(is_gone=True)
    live = LiveRequest(client)
    assert live.send({"a": 1}, is_final=False)
    assert live.is_gone()
    assert live.send(None, is_final=True)
    assert not live.send({"b": 2}, is_final=True)
    assert not live.fail("too late", CANCELLED)
    assert not live.is_gone()
    assert client.sent == [({"a": 1}, False), (None, True)]
    assert client.num_asked == 1


def test_an_error_is_a_final_response() -> None:
    client = Client()
    live = LiveRequest(client)
    assert live.fail("it was cancelled", CANCELLED)
    assert not live.send({}, is_final=True)
    assert client.sent == [("it was cancelled", CANCELLED)]


def test_a_client_that_is_gone_is_reported_once() -> None:
    watched = Watched()
    with watched.open() as senders:
        ((first, client), (_, other)) = add(senders, 2)
        client.is_gone = True
        assert watched.gone.get(timeout=WAIT_S) is first
        num_asked = client.num_asked
        seen = other.num_asked
        while other.num_asked < seen + 5:
            watched.published.get(timeout=WAIT_S)
    assert client.num_asked == num_asked
    assert watched.gone.empty()


@pytest.mark.parametrize("check_all_s", [float("inf"), 0.001])
def test_all_requests_of_a_closed_stream_are_reported(check_all_s: float) -> None:
    watched = Watched()
    with watched.open(WatchPeriods(0.001, 0.1, check_all_s)) as senders:
        added = add(senders, 20)
        for _, client in added:
            client.is_gone = True
        gone = {watched.gone.get(timeout=WAIT_S) for _ in added}
    assert gone == {live for live, _ in added}


def test_requests_are_asked_in_turn() -> None:
    watched = Watched()
    with watched.open() as senders:
        added = add(senders, 3)
        while min(client.num_asked for _, client in added) < 5:
            watched.published.get(timeout=WAIT_S)
        counts = [client.num_asked for _, client in added]
    assert max(counts) - min(counts) <= 3


def test_the_number_of_live_requests_is_published_to_the_last_end() -> None:
    watched = Watched()
    with watched.open() as senders:
        assert watched.published.get(timeout=WAIT_S) == 0
        ((live, _),) = add(senders, 1)
        watched.until_published(1)
        senders.remove(live)
        watched.until_published(0)
        assert senders.live() == []


def test_idle_senders_publish_nothing() -> None:
    watched = Watched()
    with watched.open() as senders:
        ((live, _),) = add(senders, 1)
        watched.until_published(1)
        senders.remove(live)
        watched.until_published(0)
    # The closing thread has ended: at most the publication that was under way has followed.
    assert watched.published.qsize() <= 1


def test_tritons_own_sender_gets_tensors_flags_and_codes() -> None:
    class Error(str):
        UNAVAILABLE = 14

        def __new__(cls, message: str, code: int) -> Any:
            return (message, code)

    triton = SimpleNamespace(
        TRITONSERVER_RESPONSE_COMPLETE_FINAL=1,
        Tensor=lambda name, array: (name, array),
        InferenceResponse=lambda arrays=(), error=None: error or arrays,
        TritonError=Error,
    )
    calls: list[tuple[Any, int]] = []
    own = SimpleNamespace(
        send=lambda response=None, flags=0: calls.append((response, flags)),
        is_cancelled=lambda: 1,
    )
    sender = TritonSender(triton, own)
    sender.send({"a": 5}, is_final=False)
    sender.send(None, is_final=True)
    sender.fail("too late", TIMED_OUT)
    assert calls == [([("a", 5)], 0), (None, 1), (("too late", 14), 1)]
    assert sender.is_cancelled() is True


def test_metrics_that_change_without_a_request_are_published() -> None:
    watched = Watched()
    with watched.open() as senders:
        watched.until_published(0)
        senders.refresh()
        assert watched.published.get(timeout=WAIT_S) == 0
