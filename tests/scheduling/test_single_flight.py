"""One request for all who ask the same: who flies, who joins, who is cancelled, what is shared."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compllm.backend import GenerateRequest, Segment
from compllm.errors import BackendError, BackendRejected, BackendUnavailable
from compllm.scheduling.admission import Admission
from compllm.scheduling.single_flight import Outcome, SharingStats, SingleFlight
from compllm.testing import Reply, ScriptedBackend
from compllm.types import SamplingParams


class Setting:
    """Flights over a scripted backend; each `ask` is one node of one query."""

    def __init__(
        self, *replies: Reply, limit: int = 8, is_shared: bool = True, cache_size: int = 0
    ) -> None:
        self.backend = ScriptedBackend(*replies)
        self.admission = Admission({"tensorrt_llm": limit})
        self.now_s = 0.0
        self.flights = SingleFlight(
            self.backend,
            is_shared=is_shared,
            cache_size=cache_size,
            cache_ttl_s=10.0,
            clock=lambda: self.now_s,
        )
        self.started: list[int] = []  # queries, each time on_start was called

    def ask(
        self,
        text: str,
        query: int = 0,
        *,
        path: float = 1.0,
        adapter_id: int | None = 7,
        sampling: SamplingParams | None = None,
    ) -> asyncio.Task[Outcome]:
        request = GenerateRequest(
            f"{query}-{text}", (Segment(text),), sampling or SamplingParams(), adapter_id=adapter_id
        )
        slot = self.admission.slot("tensorrt_llm", query, 1, path)
        generating = self.flights.generate(request, slot, lambda _: self.started.append(query))
        return asyncio.create_task(generating)

    @property
    def stats(self) -> SharingStats:
        return self.flights.stats()


async def turns() -> None:
    for _ in range(8):
        await asyncio.sleep(0)


async def test_who_asks_the_same_meanwhile_gets_the_one_response() -> None:
    gate = asyncio.Event()
    setting = Setting(Reply("26", gate=gate))
    asked = [setting.ask("iron?", query) for query in range(3)]
    await setting.backend.wait_for("iron?")
    asked.append(setting.ask("iron?", 3))
    await turns()
    gate.set()
    outcomes = await asyncio.gather(*asked)
    assert [outcome.text for outcome in outcomes] == ["26"] * 4
    assert [outcome.is_shared for outcome in outcomes] == [False, True, True, True]
    assert len(setting.backend.requests) == 1
    assert setting.started == [0, 1, 2, 3]
    assert (setting.stats.num_flights, setting.stats.num_joined) == (1, 3)
    assert setting.stats.num_running == 0


@pytest.mark.parametrize("other", ["text", "adapter", "sampling"])
async def test_what_differs_in_anything_flies_alone(other: str) -> None:
    gate = asyncio.Event()
    setting = Setting(Reply("26", gate=gate))
    one = setting.ask("iron?")
    two = setting.ask(
        "neon?" if other == "text" else "iron?",
        adapter_id=8 if other == "adapter" else 7,
        sampling=SamplingParams(max_tokens=3) if other == "sampling" else None,
    )
    await setting.backend.wait_for("?", count=2)
    gate.set()
    await asyncio.gather(one, two)
    assert setting.stats.num_joined == 0


async def test_what_is_drawn_by_chance_is_never_shared() -> None:
    setting = Setting(Reply("26"), cache_size=4)
    chance = SamplingParams(temperature=0.7)
    await asyncio.gather(*(setting.ask("iron?", sampling=chance) for _ in range(3)))
    await setting.ask("iron?", sampling=chance)
    assert len(setting.backend.requests) == 4


async def test_switched_off_every_request_flies_alone() -> None:
    setting = Setting(Reply("26"), is_shared=False, cache_size=4)
    outcomes = await asyncio.gather(*(setting.ask("iron?") for _ in range(3)))
    assert len(setting.backend.requests) == 3
    assert not any(outcome.is_shared for outcome in outcomes)


async def test_the_first_may_leave_and_the_flight_goes_on() -> None:
    gate = asyncio.Event()
    setting = Setting(Reply("26", gate=gate))
    first, second = setting.ask("iron?", 1), setting.ask("iron?", 2)
    await setting.backend.wait_for("iron?")
    first.cancel()
    await turns()
    assert first.cancelled()
    assert setting.backend.num_running == 1
    gate.set()
    assert (await second).text == "26"
    assert setting.stats.num_handed_over == 1


async def test_the_last_to_leave_cancels_the_request_before_it_is_gone() -> None:
    setting = Setting(Reply("26", gate=asyncio.Event()))
    asked = [setting.ask("iron?", query) for query in range(3)]
    await setting.backend.wait_for("iron?")
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert [each.outcome for each in setting.backend.requests] == ["cancelled"]
    assert setting.admission.load("tensorrt_llm").num_in_flight == 0
    assert setting.stats.num_running == 0


async def test_after_the_last_has_left_the_next_flies_anew() -> None:
    setting = Setting(Reply("26", gate=asyncio.Event(), times=1), Reply("27"))
    first = setting.ask("iron?")
    await setting.backend.wait_for("iron?")
    first.cancel()
    assert (await setting.ask("iron?")).text == "27"


async def test_who_leaves_the_queue_before_the_start_gives_its_place_up() -> None:
    gate = asyncio.Event()
    setting = Setting(Reply("x", gate=gate), limit=1)
    holder = setting.ask("other?", 0)
    await setting.backend.wait_for("other?")
    waiting = setting.ask("iron?", 1)
    await turns()
    assert setting.admission.load("tensorrt_llm").num_waiting == 1
    waiting.cancel()
    await turns()
    assert setting.admission.load("tensorrt_llm").num_waiting == 0
    gate.set()
    await holder
    assert not setting.backend.find("iron?")
    assert 1 not in setting.started


async def test_an_older_query_that_joins_moves_the_flight_up_in_the_queue() -> None:
    gate = asyncio.Event()
    setting = Setting(Reply("x", gate=gate), limit=1)
    tasks = [setting.ask("holder?", 0)]
    await setting.backend.wait_for("holder?")
    tasks += [setting.ask("between?", 5), setting.ask("shared?", 9)]
    await turns()
    tasks.append(setting.ask("shared?", 2))  # an old query's late node: before 5
    await turns()
    gate.set()
    await asyncio.gather(*tasks)
    assert [each.text for each in setting.backend.requests] == ["holder?", "shared?", "between?"]


async def test_a_younger_query_that_joins_moves_nothing() -> None:
    gate = asyncio.Event()
    setting = Setting(Reply("x", gate=gate), limit=1)
    tasks = [setting.ask("holder?", 0)]
    await setting.backend.wait_for("holder?")
    tasks += [setting.ask("shared?", 3), setting.ask("between?", 5), setting.ask("shared?", 9)]
    await turns()
    gate.set()
    await asyncio.gather(*tasks)
    assert [each.text for each in setting.backend.requests] == ["holder?", "shared?", "between?"]


async def test_a_refusal_of_the_request_is_everybodys() -> None:
    gate = asyncio.Event()
    setting = Setting(Reply(error=BackendRejected("too long"), gate=gate))
    asked = [setting.ask("iron?", query) for query in range(3)]
    await setting.backend.wait_for("iron?")
    gate.set()
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(end, BackendRejected) for end in ends)
    assert len(setting.backend.requests) == 1


async def test_another_failure_is_the_firsts_alone_and_the_others_fly_again_together() -> None:
    gate = asyncio.Event()
    setting = Setting(Reply(error=BackendUnavailable("away"), gate=gate, times=1), Reply("26"))
    asked = [setting.ask("iron?", query) for query in range(4)]
    await setting.backend.wait_for("iron?")
    gate.set()
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(ends[0], BackendUnavailable)
    assert [isinstance(end, Outcome) and end.text for end in ends[1:]] == ["26"] * 3
    assert len(setting.backend.requests) == 2
    assert setting.stats.num_refused_failures == 3


async def test_a_second_failure_is_taken_so_that_nobody_flies_for_ever() -> None:
    setting = Setting(Reply(error=BackendError("stalled")))
    asked = [setting.ask("iron?", query) for query in range(5)]
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(end, BackendError) for end in ends)
    assert len(setting.backend.requests) == 2


async def test_a_full_queue_refuses_each_for_itself() -> None:
    setting = Setting(Reply("x", gate=asyncio.Event()), limit=1)
    setting.admission = Admission({"tensorrt_llm": 1}, max_waiting=0)
    holder = setting.ask("holder?")
    await setting.backend.wait_for("holder?")
    with pytest.raises(BackendUnavailable, match="wait already"):
        await setting.ask("iron?")
    holder.cancel()
    await asyncio.gather(holder, return_exceptions=True)


async def test_a_fault_of_the_program_reaches_everybody() -> None:
    setting = Setting()  # no reply fits
    asked = [setting.ask("iron?", query) for query in range(2)]
    ends = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(end, AssertionError) for end in ends)


async def test_closing_ends_what_flies_with_a_typed_error() -> None:
    setting = Setting(Reply("26", gate=asyncio.Event()))
    asked = setting.ask("iron?")
    await setting.backend.wait_for("iron?")
    await setting.flights.aclose()
    with pytest.raises(BackendUnavailable, match="closed"):
        await asked
    assert setting.backend.num_running == 0


async def test_without_a_cache_the_next_asks_again() -> None:
    setting = Setting(Reply("26"))
    await setting.ask("iron?")
    await setting.ask("iron?")
    assert len(setting.backend.requests) == 2


async def test_a_cache_answers_until_its_time_is_over() -> None:
    setting = Setting(Reply("26"), cache_size=2)
    await setting.ask("iron?")
    setting.now_s = 9.0
    known = await setting.ask("iron?", 5)
    assert (known.text, known.is_shared) == ("26", True)
    assert setting.started[-1] == 5
    setting.now_s = 11.0
    assert not (await setting.ask("iron?")).is_shared
    assert len(setting.backend.requests) == 2
    assert (setting.stats.num_cache_hits, setting.stats.num_cached) == (1, 1)


async def test_a_full_cache_forgets_what_was_used_least_recently() -> None:
    setting = Setting(Reply("x"), cache_size=2)
    for text in ("a?", "b?", "a?", "c?", "a?", "b?"):
        await setting.ask(text)
    assert [each.text for each in setting.backend.requests] == ["a?", "b?", "c?", "b?"]


async def test_neither_failures_nor_empty_responses_are_kept() -> None:
    setting = Setting(Reply("", times=1), Reply(error=BackendError("broke"), times=1), Reply("26"))
    setting.flights = SingleFlight(setting.backend, cache_size=4)
    assert (await setting.ask("iron?")).text == ""
    with pytest.raises(BackendError):
        await setting.ask("iron?")
    assert (await setting.ask("iron?")).text == "26"


Step = tuple[str, int]  # ask question n | cancel asker n | let question n end | fail question n


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "ask", "cancel", "end", "fail"]), st.integers(0, 5)),
        max_size=30,
    ),
    st.integers(1, 3),
)
def test_whatever_happens_everybody_who_stays_is_answered_and_nothing_is_left(
    steps: list[Step], limit: int
) -> None:
    asyncio.run(_check(steps, limit))


async def _check(steps: list[Step], limit: int) -> None:
    """Three questions, at most one request of each at a time."""
    gates = [asyncio.Event() for _ in range(3)]
    is_failing = [False] * 3

    def reply(number: int, *, fails: bool) -> Reply:
        return Reply(
            "" if fails else f"answer {number}",
            match=lambda request: (
                request.prompt[0].text == f"q{number}?" and is_failing[number] == fails
            ),
            error=BackendError("broke") if fails else None,
            gate=gates[number],
        )

    setting = Setting(
        *(reply(n, fails=fails) for n in range(3) for fails in (True, False)), limit=limit
    )
    asked: list[tuple[int, asyncio.Task[Outcome]]] = []
    cancelled: set[int] = set()
    for what, number in steps:
        question = number % 3
        if what == "ask":
            asked.append((question, setting.ask(f"q{question}?", len(asked) % 4)))
        elif what == "cancel" and number < len(asked):
            cancelled.add(number)
            asked[number][1].cancel()
        elif what in ("end", "fail"):
            is_failing[question] = what == "fail"
            gates[question].set()
            await turns()
            gates[question].clear()
        if number % 2:
            await turns()
        running = [each.text for each in setting.backend.requests if each.outcome == "running"]
        assert len(running) == len(set(running)) <= limit
    for question in range(3):
        is_failing[question] = False
        gates[question].set()
    ends = await asyncio.gather(*(task for _, task in asked), return_exceptions=True)
    for place, ((question, _), end) in enumerate(zip(asked, ends, strict=True)):
        if isinstance(end, Outcome):
            assert end.text == f"answer {question}"
        else:
            assert isinstance(end, BackendError) or place in cancelled
    load = setting.admission.load("tensorrt_llm")
    assert (load.num_in_flight, load.num_waiting) == (0, 0)
    assert setting.stats.num_running == setting.backend.num_running == 0
    setting.flights.check()
