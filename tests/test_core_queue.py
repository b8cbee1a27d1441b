"""The compiled admission queue beside a list that is searched from end to end."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from compllm import _core
from compllm.errors import BackendUnavailable

BIG = 1_000_000


class QueueMachine(RuleBasedStateMachine):
    """The admission queue beside a list that is searched from end to end."""

    LIMITS = (1, 3)
    MAX_WAITING = 12

    @initialize(policy=st.sampled_from(list(_core.Policy)))
    def make(self, policy):
        self.queue = _core.AdmissionQueue(self.LIMITS, policy, self.MAX_WAITING)
        self.waiting: dict[int, tuple[int, int, int, int, int]] = {}
        self.in_flight = [0, 0]
        self.policy = policy.name

    def order(self, ticket: int) -> tuple[int, ...]:
        return (*self.order_of(self.waiting[ticket]), ticket)

    def order_of(self, request: tuple[int, int, int, int, int]) -> tuple[int, ...]:
        query, node, path, work, _ = request
        return {
            "oldest_query_first": (query, -path, node),
            "fifo": (),
            "deepest_first": (-path, query, node),
            "least_remaining_work": (work, query, -path),
        }[self.policy]

    def of_engine(self, engine: int) -> list[int]:
        return [ticket for ticket, request in self.waiting.items() if request[4] == engine]

    small = st.integers(0, 3)
    engines = st.sampled_from([0, 1])

    @rule(query=small, node=small, path=small, work=small, engine=engines)
    def enter(self, query, node, path, work, engine):
        request = (query, node, path, work, engine)
        if self.in_flight[engine] < self.LIMITS[engine]:
            assert self.queue.enter(*request) is None
            self.in_flight[engine] += 1
        elif len(self.waiting) == self.MAX_WAITING:
            with pytest.raises(BackendUnavailable, match="12 requests wait already"):
                self.queue.enter(*request)
        else:
            ticket = self.queue.enter(*request)
            assert all(ticket > other for other in self.waiting)
            self.waiting[ticket] = request

    @rule(engine=engines)
    def release(self, engine):
        if self.in_flight[engine] == 0:
            with pytest.raises(RuntimeError, match="nothing in flight"):
                self.queue.release(engine)
            return
        ticket = min(self.of_engine(engine), key=self.order, default=None)
        assert self.queue.release(engine) == ticket
        if ticket is None:
            self.in_flight[engine] -= 1
        else:
            del self.waiting[ticket]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data):
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.cancel(ticket)
        assert not self.queue.cancel(ticket)
        del self.waiting[ticket]

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), query=small, node=small, path=small, work=small)
    def promote(self, data, query, node, path, work):
        ticket = data.draw(st.sampled_from(sorted(self.waiting)))
        old, new = self.waiting[ticket], (query, node, path, work, self.waiting[ticket][4])
        is_earlier = self.order_of(new) < self.order_of(old)
        promoted = self.queue.promote(ticket, *new[:4])
        if not is_earlier or self.policy in ("fifo", "least_remaining_work"):
            assert promoted is None
            return
        assert all(promoted > other for other in self.waiting)
        assert self.queue.promote(ticket, 0, 0, 9.0, 0.0) is None
        del self.waiting[ticket]
        self.waiting[promoted] = new

    @invariant()
    def agrees(self):
        for engine in (0, 1):
            assert self.queue.num_waiting(engine) == len(self.of_engine(engine))
            assert self.queue.num_in_flight(engine) == self.in_flight[engine]


TestQueueMachine = QueueMachine.TestCase


TestQueueMachine.settings = settings(deadline=None, max_examples=60, stateful_step_count=50)


def test_a_wrong_engine_or_limit_is_refused():
    with pytest.raises(ValueError, match="limit 0 would never answer"):
        _core.AdmissionQueue([1, 0], _core.Policy.fifo, 1)
    queue = _core.AdmissionQueue([1], _core.Policy.fifo, 1)
    with pytest.raises(IndexError, match="no engine 1 among 1"):
        queue.enter(0, 0, 1.0, 1.0, 1)
    with pytest.raises(ValueError, match="not finite"):
        queue.enter(0, 0, float("nan"), 1.0, 0)


def test_the_one_request_left_is_found_below_many_cancelled_ones():
    queue = _core.AdmissionQueue([1], _core.Policy.oldest_query_first, BIG)
    assert queue.enter(0, 0, 1.0, 1.0, 0) is None
    tickets = [queue.enter(query, 0, 1.0, 1.0, 0) for query in range(5000)]
    for ticket in tickets[:-1]:
        assert queue.cancel(ticket)
    assert queue.num_waiting(0) == 1
    assert queue.release(0) == tickets[-1]
    assert queue.release(0) is None


def test_a_request_that_was_released_or_cancelled_is_not_promoted():
    queue = _core.AdmissionQueue([1], _core.Policy.oldest_query_first, BIG)
    assert queue.enter(0, 0, 1.0, 1.0, 0) is None
    tickets = [queue.enter(query, 0, 1.0, 1.0, 0) for query in (5, 6, 7)]
    assert queue.release(0) == tickets[0]
    assert queue.cancel(tickets[1])
    assert queue.promote(tickets[0], 1, 0, 1.0, 1.0) is None
    assert queue.promote(tickets[1], 1, 0, 1.0, 1.0) is None
    with pytest.raises(ValueError, match="not finite"):
        queue.promote(tickets[2], 1, 0, float("nan"), 1.0)
    assert queue.num_waiting(0) == 1


def test_a_full_queue_still_promotes():
    queue = _core.AdmissionQueue([1], _core.Policy.oldest_query_first, 2)
    assert queue.enter(0, 0, 1.0, 1.0, 0) is None
    first, last = (queue.enter(query, 0, 1.0, 1.0, 0) for query in (5, 6))
    promoted = queue.promote(last, 2, 0, 1.0, 1.0)
    assert [queue.release(0), queue.release(0), queue.release(0)] == [promoted, first, None]
