from collections.abc import AsyncIterator

import pytest
from rich.console import Console

from compllm.cli.view import GraphView, describe, footer, show
from compllm.printable import printable
from compllm.types import (
    Answer,
    AnswerDelta,
    AnswerFinished,
    Bound,
    Event,
    NodeFinished,
    NodeResult,
    NodeStarted,
    Plan,
    PlanFinished,
    Query,
    Route,
    SubQuery,
    SubQueryPlanned,
    Timings,
)

IRON = SubQuery(1, "What is the atomic number of iron?")
HEART = SubQuery(2, "How many chambers does the heart have?")
SUM = SubQuery(3, "What is #1 plus #2?", (1, 2))
PLAN = Plan((IRON, HEART, SUM))


def planned(*sub_queries: SubQuery) -> list[Event]:
    return [SubQueryPlanned(sub_query, Route("chemistry", 0.5, False)) for sub_query in sub_queries]


def done(node_id: int, start_s: float, end_s: float, response: str = "26") -> NodeFinished:
    return NodeFinished(
        NodeResult(node_id, "chemistry", "done", response, start_s=start_s, end_s=end_s)
    )


def drawn(events: list[Event], now_s: float = 0.0, width: int = 120) -> str:
    times = iter([100.0])
    view = GraphView(lambda: next(times, 100.0 + now_s))
    for event in events:
        view.apply(event)
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def answer(text: str = "30", **changes: object) -> Answer:
    values: dict[str, object] = {
        "query": Query("?"),
        "text": text,
        "plan": PLAN,
        "routes": (),
        "nodes": (),
        "timings": Timings(total_s=2.0),
        "bound": Bound(1.5, 1.4),
    }
    return Answer(**(values | changes))  # type: ignore[arg-type]


async def stream(events: list[Event]) -> AsyncIterator[Event]:
    for event in events:
        yield event


def test_node_is_ready_when_all_its_parents_have_ended() -> None:
    events = planned(IRON, HEART, SUM)
    assert drawn(events).count("waiting") == 1
    events += [NodeStarted(1, "chemistry", 0.1), done(1, 0.1, 1.0)]
    assert drawn(events).count("waiting") == 1
    events += [done(2, 0.1, 1.0)]
    assert drawn(events).count("waiting") == 0
    assert "ready" in drawn(events)


def test_overlapping_nodes_have_overlapping_bars() -> None:
    started = [NodeStarted(1, "chemistry", 0.0), NodeStarted(2, "chemistry", 1.0)]
    text = drawn([*planned(IRON, HEART), *started, done(1, 0.0, 1.5), done(2, 1.0, 2.0)])
    first, second = (line for line in text.splitlines() if "done" in line)
    assert second.index("━") < first.rindex("━") < second.rindex("━")


def test_running_node_is_drawn_up_to_now() -> None:
    line = drawn([*planned(IRON), NodeStarted(1, "chemistry", 1.0)], now_s=4.0).splitlines()[1]
    assert "3.00" in line
    assert line.count("━") == 18


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_sub_query_is_read_at_any_width(width: int) -> None:
    """A narrow terminal lost it, and kept the whole time line."""
    events = [*planned(IRON, HEART, SUM), NodeStarted(1, "chemistry", 0.0), done(1, 0.0, 1.0)]
    lines = drawn(events, width=width).splitlines()
    assert all(len(line) <= width for line in lines)
    begin = lines[0].index("sub-query")
    column = lines[0].index("expert") - begin
    words = " ".join(line[begin : begin + column].strip() for line in lines[1:])
    assert " ".join(words.split()).startswith(f"{IRON.text} 26 {HEART.text} {SUM.text} after 1, 2")
    assert all(state in "\n".join(lines) for state in ("done", "ready", "waiting"))
    assert max(line.count("━") for line in lines) == {40: 0, 60: 0, 80: 11, 120: 24}[width]


@pytest.mark.parametrize("width", [40, 50, 60, 80])
def test_long_names_and_states_are_shown_whole(width: int) -> None:
    route = Route("mathematics", 0.5, is_fallback=False)
    result = NodeResult(1, "mathematics", "cancelled", "26", end_s=1.0)
    lines = drawn([SubQueryPlanned(IRON, route), NodeFinished(result)], width=width).splitlines()
    assert all(len(line) <= width for line in lines)
    assert "mathematics" in lines[1]
    assert "cancelled" in lines[1]
    assert lines[1].split()[1:3] == ["What", "is"]


def test_one_node_is_no_nodes() -> None:
    one = Plan((IRON,))
    result = NodeResult(1, "chemistry", "done", "26")
    assert footer(answer(plan=one, nodes=(result,))).startswith("1 node in 2.00 s")
    assert footer(answer(nodes=(result, result))).startswith("2 nodes in")
    assert describe(PlanFinished(one)) == "plan     1 sub-query"


def test_fall_back_replaces_the_nodes_planned_so_far() -> None:
    fallback = Plan((SubQuery(1, "the whole question"),), is_fallback=True, reason="id 2 twice")
    text = drawn([*planned(IRON, HEART), PlanFinished(fallback)])
    assert "iron" not in text
    assert "the whole question" in text
    assert "fall-back: id 2 twice" in text


def test_markup_and_escapes_in_a_models_text_are_only_text() -> None:
    evil = SubQuery(1, "[red]\x1b]0;title\x07[/red] [/nothing]")
    text = drawn([*planned(evil), done(1, 0.0, 1.0, "\x1b[31m[bold]")])
    assert "[red]]0;title[/red] [/nothing]" in text
    assert "\x1b" not in text


def test_printable_keeps_newlines_and_tabs() -> None:
    assert printable("a\x00\x1b[1m\tb\r\nc\x9b") == "a[1m\tb\nc"


def test_event_of_an_unknown_node_is_left_out() -> None:
    assert "done" not in drawn([NodeStarted(7, "chemistry", 0.1), done(7, 0.1, 0.2)])


async def test_answer_goes_to_stdout_and_the_graph_to_the_console(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(width=100, color_system=None, force_terminal=False)
    events = [*planned(IRON), PlanFinished(PLAN), AnswerDelta("3"), AnswerDelta("0")]
    with console.capture() as capture:
        shown = await show(stream([*events, AnswerFinished(answer())]), console)
    assert shown.text == "30"
    assert capsys.readouterr().out == "30\n"
    assert "planned  1: What is the atomic number of iron? -> chemistry (0.50)" in capture.get()


async def test_answer_that_was_not_streamed_is_printed_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console = Console(quiet=True)
    await show(stream([AnswerFinished(answer("all at once"))]), console)
    assert capsys.readouterr().out == "all at once\n"


async def test_terminal_shows_the_last_picture_once_the_answer_begins() -> None:
    console = Console(width=120, force_terminal=True, color_system=None)
    with console.capture() as capture:
        await show(
            stream([*planned(IRON), done(1, 0.0, 1.0), AnswerDelta("x"), AnswerFinished(answer())]),
            console,
        )
    assert "What is the atomic number of iron?" in capture.get()


def test_every_event_of_a_node_makes_a_line() -> None:
    failed = NodeFinished(NodeResult(2, "base", "failed", error="engine away", end_s=1.5))
    assert describe(NodeStarted(1, "biology", 0.25)) == "started  1 on biology at 0.25 s"
    assert describe(failed) == "failed   2 at 1.50 s: engine away"
    assert describe(planned(SUM)[0]) == (
        "planned  3 after 1, 2: What is #1 plus #2? -> chemistry (0.50)"
    )


def test_footer_tells_what_one_after_another_would_take() -> None:
    """It showed a speed-up that counted the wait for the plan's next line: 0.5 where nothing was
    slow."""
    nodes = (
        NodeResult(1, "base", "done", start_s=0.5, end_s=0.75),
        NodeResult(2, "base", "done", start_s=1.0, end_s=1.5),
    )
    timings = Timings(plan_s=1.0, execute_s=1.0, compose_s=0.5, first_token_s=1.75, total_s=2.0)
    assert footer(answer(nodes=nodes, timings=timings)) == (
        "2 nodes in 2.00 s: plan 1.00, experts 1.00, answer begun at 1.75; "
        "one after another about 2.25"
    )


def test_footer_says_why_an_answer_is_partial() -> None:
    assert footer(answer(is_partial=True, error="the deadline of 2 s is over")).endswith(
        "partial answer: the deadline of 2 s is over"
    )


def test_the_confidence_of_a_withheld_answer_is_named_so() -> None:
    """'confidence 98%' below 'I do not know' read as if that were sure."""
    said = footer(answer("I do not know", confidence=0.98, is_low_confidence=True)).splitlines()[-1]
    assert said == (
        "an answer was found but withheld: the withheld answer's confidence is 98%, below the "
        "threshold"
    )
    said = footer(answer("I do not know.", confidence=0.0, is_low_confidence=True)).splitlines()[-1]
    assert said == "no answer was found"
    assert footer(answer(confidence=0.98)).endswith("\nconfidence 98%")


def test_a_plan_that_leaves_parts_out_says_so() -> None:
    cut = Plan((IRON, HEART, SUM), is_cut=True)
    warning = "the question has more parts than generator.max_nodes = 3; the rest was left out"
    assert footer(answer(plan=cut)).endswith(f"\nwarning: {warning}")
    assert describe(PlanFinished(cut)) == f"plan     3 sub-queries (warning: {warning})"
    words = drawn([*planned(IRON, HEART, SUM), PlanFinished(cut)]).split()
    assert warning in " ".join(words)
    assert "warning" not in footer(answer())
