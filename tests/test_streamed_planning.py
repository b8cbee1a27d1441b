"""A generator that stalls, dies or writes a bad plan, beside nodes that are ready.

`CompLLM.stream` on a scripted backend whose every word waits for an event: what runs at a moment
depends on no clock.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from path_parts import make_llm as make_any_llm
from path_parts import node_reply, plan_reply

from compllm.errors import BackendUnavailable
from compllm.pipeline import CompLLM
from compllm.testing import Reply, ScriptedBackend
from compllm.trace import answer_to_dict
from compllm.types import (
    Answer,
    AnswerFinished,
    Event,
    NodeFinished,
    NodeStarted,
    PlanFinished,
    Query,
)

QUERY = "Iron plus neon?"


def make_llm(backend: ScriptedBackend, **overrides: object) -> CompLLM:
    """Short questions that no expert owns: their plans run all the same."""
    return make_any_llm(backend, gate__mode="off", gate__whole_to_base=False, **overrides)


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@dataclass
class Story:
    """A query under way; `events` grows as they come."""

    llm: CompLLM
    events: list[Event] = field(default_factory=list)

    async def tell(self, query: Query | str = QUERY) -> Answer:
        async with self.llm, aclosing(self.llm.stream(query)) as events:
            async for event in events:
                self.events.append(event)
        last = self.events[-1]
        assert isinstance(last, AnswerFinished)
        return last.answer

    def ended(self) -> list[int]:
        return [event.result.id for event in self.events if isinstance(event, NodeFinished)]


async def test_a_stalled_generator_holds_up_no_node_nor_its_children() -> None:
    stall = asyncio.Event()
    go_on = asyncio.Event()
    go_on.set()
    backend = ScriptedBackend(
        plan_reply(
            "1 | iron?\n",
            "2 <1> | half?\n",
            "3 <2> | even?\n",
            "4 | neon?",
            piece_gates=(go_on, go_on, go_on, stall),
        ),
        node_reply("iron?", "26"),
        node_reply("half?", "13"),
        node_reply("even?", "no"),
        node_reply("neon?", "10"),
        Reply("both", is_guided=False),
    )
    story = Story(make_llm(backend))
    run = asyncio.create_task(story.tell())
    await (await backend.wait_for("user\neven?")).ended.wait()
    await turns()
    assert story.ended() == [1, 2, 3]  # a chain ran to its end while nothing was written
    assert backend.requests[0].outcome == "running"
    stall.set()
    assert (await run).text == "both"


async def test_a_generator_that_stalls_for_ever_ends_by_its_own_time_limit() -> None:
    first = asyncio.Event()
    first.set()
    backend = ScriptedBackend(
        plan_reply("1 | iron?\n", "2 | neon?", piece_gates=(first, asyncio.Event())),
        node_reply("iron?", gate=asyncio.Event()),
        node_reply(QUERY, "36"),
    )
    story = Story(make_llm(backend, timeouts__plan_s=0.05))
    answer = await story.tell()
    assert (answer.text, answer.plan.is_fallback) == ("36", True)
    assert "did not finish" in answer.plan.reason
    # What was begun in vain was cancelled at the engine, the generator too.
    assert [each.outcome for each in backend.requests] == ["cancelled", "cancelled", "done"]


@pytest.mark.parametrize(
    "rest",
    [
        ("2 <9> | Oh?\n",),  # no such parent
        ("1 | Again?\n",),  # an id twice
        ("gibberish\n",),
        (),  # dies
    ],
)
async def test_a_plan_that_turns_out_bad_cancels_what_it_began(rest: tuple[str, ...]) -> None:
    begun, bad = asyncio.Event(), asyncio.Event()
    begun.set()
    backend = ScriptedBackend(
        plan_reply(
            "1 | iron?\n",
            *(rest or ("2 | ",)),
            piece_gates=(begun, bad),
            error=None if rest else BackendUnavailable("gone"),
        ),
        node_reply("iron?", gate=asyncio.Event()),
        node_reply(QUERY, "36"),
    )
    story = Story(make_llm(backend))
    run = asyncio.create_task(story.tell())
    await backend.wait_for("user\niron?")
    bad.set()
    answer = await run
    assert answer.text == "36"
    assert answer.plan.is_fallback
    assert backend.find("user\niron?")[0].outcome == "cancelled"
    assert backend.num_running == 0
    assert story.llm.stats().sharing.num_running == 0
    assert story.llm.admission.is_idle


async def test_what_a_bad_plan_had_found_out_is_used_where_nothing_else_is_there() -> None:
    begun, bad = asyncio.Event(), asyncio.Event()
    begun.set()
    backend = ScriptedBackend(
        plan_reply("1 | iron?\n", "junk\n", piece_gates=(begun, bad)),
        node_reply("iron?", "26"),
        node_reply(QUERY, error=BackendUnavailable("gone")),
    )
    story = Story(make_llm(backend))
    run = asyncio.create_task(story.tell())
    await (await backend.wait_for("user\niron?")).ended.wait()
    await turns()
    bad.set()
    answer = await run
    assert (answer.text, answer.is_partial) == ("iron? 26", True)


@hypothesis_settings(max_examples=80, deadline=None)
@given(
    st.lists(st.sampled_from(["write", "answer", "turn"]), max_size=24),
    st.sampled_from(["well", "bad", "dies"]),
    st.integers(1, 5),
)
def test_in_any_order_ready_nodes_run_and_nothing_outlives_the_query(
    steps: list[str], ending: str, num_lines: int
) -> None:
    asyncio.run(_check(steps, ending, num_lines))


async def _check(steps: list[str], ending: str, num_lines: int) -> None:
    """A chain, written word by word while its nodes are answered one by one."""
    lines = [f"{n}{f' <{n - 1}>' if n > 1 else ''} | q{n}?\n" for n in range(1, num_lines + 1)]
    writing = [asyncio.Event() for _ in range(num_lines + 1)]
    answers = [asyncio.Event() for _ in range(num_lines)]
    backend = ScriptedBackend(
        plan_reply(
            *lines,
            *{"well": (), "bad": ("junk\n",), "dies": ("9",)}[ending],
            piece_gates=tuple(writing),
            error=BackendUnavailable("gone") if ending == "dies" else None,
        ),
        *(node_reply(f"q{n + 1}?", f"r{n + 1}", gate=answers[n]) for n in range(num_lines)),
        node_reply(QUERY, "36"),
    )
    story = Story(make_llm(backend))
    run = asyncio.create_task(story.tell())
    num_written = num_answered = 0
    for step in steps:
        if step == "write" and num_written < num_lines:
            writing[num_written].set()
            num_written += 1
        elif step == "answer" and num_answered < num_written:
            answers[num_answered].set()
            num_answered += 1
        if step == "turn" or step == steps[-1]:
            await turns(60)
            if num_written < num_lines or ending != "well":
                # All that can run runs or has run, whatever the generator does.
                started = [event.id for event in story.events if isinstance(event, NodeStarted)]
                assert len(started) == min(num_written, num_answered + 1)
    for event in (*writing, *answers):
        event.set()
    answer = await run
    assert answer.text == (f"r{num_lines}" if ending == "well" else "36")
    assert answer.plan.is_fallback == (ending != "well")
    assert backend.num_running == 0
    assert story.llm.admission.is_idle


async def test_a_list_longer_than_the_limit_is_answered_and_marked() -> None:
    backend = ScriptedBackend(
        plan_reply("1 | iron?\n", "2 | neon?\n", "3"),
        node_reply("iron?", "26"),
        node_reply("neon?", "10"),
    )
    overrides = {"generator__max_nodes": 2, "compose__policy": "never"}
    story = Story(make_llm(backend, **overrides))
    answer = await story.tell()
    assert answer.text == "iron? 26\nneon? 10"
    assert answer.plan.is_cut
    assert any(isinstance(event, PlanFinished) and event.plan.is_cut for event in story.events)
    assert "generator.max_nodes = 2" in answer_to_dict(answer)["warning"]


async def test_a_likelier_plan_replaces_the_first_and_asks_what_is_new_alone() -> None:
    """Both plans ask for iron: it is asked once."""
    unsure = plan_reply("1 | iron?\n", "2 <1> | half?", log_probs=(-1.0, -1.0), times=1)
    gate = asyncio.Event()
    likelier = plan_reply("1 | iron?\n", "2 | neon?", log_probs=(-0.6, -0.6), gate=gate)
    backend = ScriptedBackend(
        unsure,
        likelier,
        node_reply("iron?", "26"),
        node_reply("half?", "13"),
        node_reply("neon?", "10"),
        Reply("26 and 10", is_guided=False),
    )
    story = Story(make_llm(backend, generator__num_draws=1))
    run = asyncio.create_task(story.tell())
    await (await backend.wait_for("user\niron?")).ended.wait()
    gate.set()
    answer = await run
    assert answer.text == "26 and 10"
    assert answer.plan.is_drawn
    assert [line.text for line in answer.plan.sub_queries] == ["iron?", "neon?"]
    assert [node.response for node in answer.nodes] == ["26", "10"]
    assert story.llm.num_fallbacks == 0
    finished = [event.plan for event in story.events if isinstance(event, PlanFinished)]
    assert finished == [answer.plan]
    assert len(backend.find("user\niron?")) == 1


async def test_a_likelier_plan_that_no_expert_owns_is_the_whole_question() -> None:
    unsure = plan_reply("1 | What is the atomic number of iron?", log_probs=(-2.0,), times=1)
    likelier = plan_reply("1 | Who painted the Mona Lisa?", log_probs=(-0.5,))
    backend = ScriptedBackend(unsure, likelier, Reply("26", is_guided=False))
    llm = make_any_llm(backend, gate__mode="off", generator__num_draws=1)
    answer = await Story(llm).tell("Who painted it, iron?")
    assert answer.plan.is_direct
    assert [node.expert for node in answer.nodes] == ["base"]


async def test_draws_wait_for_their_turn_at_an_engine_that_takes_one_request() -> None:
    unsure = plan_reply("1 | iron?", log_probs=(-2.0,), times=1)
    likelier = plan_reply("1 | neon?", log_probs=(-0.5,))
    backend = ScriptedBackend(unsure, likelier, Reply("10", is_guided=False))
    llm = make_llm(backend, generator__num_draws=4, limits__max_in_flight=1)
    answer = await asyncio.wait_for(Story(llm).tell(), 10.0)
    assert (answer.text, backend.max_running) == ("10", 1)
