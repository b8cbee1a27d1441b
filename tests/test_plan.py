import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compllm.errors import CompllmError, CycleError, PlanError, UnknownNodeError
from compllm.plan import (
    PlanLimits,
    PlanParser,
    fallback_plan,
    format_plan,
    make_plan,
    parse_plan,
    plan_depth,
    plan_guide,
)
from compllm.types import SubQuery

DIAMOND = "1 | a?\n2 <1> | b?\n3 <1> | c?\n4 <2,3> | d?\n"


def texts() -> st.SearchStrategy[str]:
    plain = st.characters(exclude_categories=("Cc", "Cs"))
    return st.text(plain, min_size=1, max_size=40).map(str.strip).filter(bool)


@st.composite
def plans(draw: st.DrawFn) -> tuple[SubQuery, ...]:
    count = draw(st.integers(1, 12))
    return tuple(
        SubQuery(
            node,
            draw(texts()),
            tuple(sorted(draw(st.sets(st.integers(1, node - 1), max_size=3)))) if node > 1 else (),
        )
        for node in range(1, count + 1)
    )


def test_a_sub_query_comes_out_the_moment_its_line_ends() -> None:
    parser = PlanParser()
    assert list(parser.feed("1 | What is")) == []
    assert list(parser.feed(" it?\n2 <1")) == [SubQuery(1, "What is it?")]
    assert list(parser.feed("> | And #1?")) == []
    assert list(parser.finish()) == [SubQuery(2, "And #1?", (1,))]


@given(plans(), st.integers(1, 7))
def test_a_formatted_plan_reads_back_in_any_pieces(
    sub_queries: tuple[SubQuery, ...], size: int
) -> None:
    text = format_plan(sub_queries)
    parser = PlanParser()
    read = [
        line
        for start in range(0, len(text), size)
        for line in parser.feed(text[start : start + size])
    ]
    assert (*read, *parser.finish()) == sub_queries
    assert parse_plan(text).sub_queries == sub_queries


@given(st.text(max_size=300))
def test_junk_ends_in_a_plan_or_a_plan_error(text: str) -> None:
    try:
        plan = parse_plan(text)
    except PlanError:
        return
    assert make_plan(plan.sub_queries) == plan


@given(st.text(alphabet="12 <>,|\n#a?", max_size=60))
def test_near_plans_end_in_a_plan_or_a_plan_error(text: str) -> None:
    parser = PlanParser()
    try:
        read = (*parser.feed(text), *parser.finish())
    except PlanError:
        return
    assert make_plan(read).sub_queries == read


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("", PlanError, "empty"),
        ("\n \n", PlanError, "empty"),
        ("hello", PlanError, "'hello'"),
        ("1 |  ", PlanError, "without text"),
        ("2 | a?", PlanError, "expected 1, saw 2"),
        ("1 | a?\n1 | b?", PlanError, "used twice"),
        ("1 | a?\n3 | b?", PlanError, "expected 2, saw 3"),
        ("1 <1> | a?", CycleError, "itself"),
        ("1 <2> | a?\n2 <1> | b?", CycleError, "cycle: "),
        ("1 <2> | a?\n2 | b?", PlanError, "forward reference"),
        ("1 | a?\n2 <7> | b?", UnknownNodeError, "parent 7"),
        ("1 | a?\n2 <1,1> | b?", PlanError, "named twice"),
        ("1 | a?\n2 <> | b?", PlanError, "must be ids"),
        ("1 | a?\n2 <1,> | b?", PlanError, "must be ids"),
        ("1 | a\x00b?", PlanError, "control character"),
        ("1 | a?\x1b[2J", PlanError, "control character"),
        ("1 | " + "a" * 1001, PlanError, "more than 1000 characters"),
        ("{", PlanError, "not JSON"),
        ("[1, 2]", PlanError, "not a line"),
        ('{"id": true, "text": "a?"}', PlanError, "not a line"),
        ('{"id": 1, "text": "a\\ud800"}', PlanError, "control character"),
        ('{"steps": ["a?"], "parents": []}', PlanError, "one length"),
        ("[" * 100_000, PlanError, "not JSON"),
    ],
)
def test_a_broken_rule_is_a_typed_error_with_the_line(
    text: str, kind: type[CompllmError], says: str
) -> None:
    with pytest.raises(kind, match=re.escape(says)) as caught:
        parse_plan(text)
    assert len(str(caught.value)) < 300


def test_a_cycle_error_lists_the_nodes_of_the_cycle() -> None:
    with pytest.raises(CycleError) as caught:
        parse_plan("1 | a?\n2 <4> | b?\n3 <2> | c?\n4 <3> | d?")
    assert set(caught.value.nodes) == {2, 3, 4}


def test_ten_thousand_nodes_are_refused_by_their_number() -> None:
    text = "".join(f"{node} | a?\n" for node in range(1, 10_001))
    with pytest.raises(PlanError, match="10000 sub-queries, at most 64"):
        parse_plan(text)


def test_a_plan_file_of_a_megabyte_is_refused_unread() -> None:
    with pytest.raises(PlanError, match="1000000 characters"):
        parse_plan("1" * 1_000_000)


def test_depth_is_bounded() -> None:
    chain = "1 | a?\n" + "".join(f"{node} <{node - 1}> | a?\n" for node in range(2, 7))
    assert plan_depth(parse_plan(chain).sub_queries) == 6
    with pytest.raises(PlanError, match="deeper than 5"):
        parse_plan(chain, PlanLimits(max_depth=5))


def test_a_line_that_never_ends_is_refused_while_it_grows() -> None:
    parser = PlanParser(PlanLimits(max_line_chars=50))
    pieces = (line for _ in range(100) for line in parser.feed("1 | aaa"))
    with pytest.raises(PlanError, match="more than 50"):
        list(pieces)


@pytest.mark.parametrize(
    "text",
    [
        '{"id": 1, "text": "a?"}\n{"id": 2, "text": "b?", "parents": [1]}',
        '{"plan": {"num_nodes": 2, "lines": ["1 | a?", "2 <1> | b?"]}}',
        '["1 | a?", "2 <1> | b?"]',
        '{"question": "q", "steps": ["a?", "b?"], "parents": [[], [0]]}',
        "\ufeff1 | a?\r\n2 < 1 > | b?\r\n",
    ],
)
def test_every_shape_of_a_plan_file_reads_the_same(text: str) -> None:
    assert parse_plan(text).sub_queries == (SubQuery(1, "a?"), SubQuery(2, "b?", (1,)))


def test_references_in_a_text_are_only_text() -> None:
    assert parse_plan("1 | What is #7 | <2> plus #1?").sub_queries == (
        SubQuery(1, "What is #7 | <2> plus #1?"),
    )


def test_the_fallback_plan_is_the_query_itself() -> None:
    plan = fallback_plan("Why?", "no lines")
    assert (plan.sub_queries, plan.is_fallback, plan.reason) == (
        (SubQuery(1, "Why?"),),
        True,
        "no lines",
    )


@given(st.integers(1, 6), st.booleans(), st.data())
def test_whatever_the_guide_allows_the_parser_reads(
    max_nodes: int, is_question_only: bool, data: st.DataObject
) -> None:
    guide = plan_guide(max_nodes, max_text_chars=8, is_question_only=is_question_only).text
    text = data.draw(st.from_regex(re.compile(guide, re.ASCII), fullmatch=True))
    # Of characters beyond ASCII the guide knows nothing: controls, and a text of white space alone.
    if not re.search("[\x80-\x9f]", text) and not _has_blank_text(text):
        assert len(parse_plan(text).sub_queries) <= max_nodes


def _has_blank_text(plan: str) -> bool:
    lines = (line.partition("|") for line in plan.split("\n"))
    return any(bar and not text.strip() for _, bar, text in lines)


def test_a_sub_query_of_white_space_beyond_ascii_is_refused() -> None:
    """A guide lets it through; the plan then falls back to the question itself."""
    with pytest.raises(PlanError, match="a sub-query without text"):
        parse_plan("1 | \xa0\u2003")


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("1 | What is it?", True),
        ("1 | What is it?\n2 <1> | Is #1 even?", True),
        ("1 | What is it?\n2 | Is #1 even?", False),
        ("1 | a b?\n2 | c d?\n3 <1,2> | Is #1 more than #2?", True),
        ("1 | a b?\n2 | c d?\n3 <2,1> | Is #1 more than #2?", False),
        ("1 | a b?\n3 | c d?", False),
        ("1 | a b?\n", False),
        ("2 | a b?", False),
        ("1 | What is |-5|?\n2 | Is 2 < 7 > 1?\n3 | Who made C#?", True),
        ("1 | Why?? How?", False),
    ],
)
def test_the_guide_keeps_to_the_grammar(text: str, is_allowed: bool) -> None:
    assert bool(re.fullmatch(plan_guide(3).text, text)) is is_allowed


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("1 | return flights\n2 <1> | return #1 from Toronto", True),
        ("1 | return flights\n2 | return #1 from Toronto", False),
        ("1 | Which? That one.", True),
        ("1 | What is |-5|?\n2 | Is 2 < 7?\n3 | |x| > 3", True),
        ("1 | Who made C#?\n2 | what is item # 4 in F#", True),
        ("1 | a\n2 | #1", False),
        ("1 | a\rb", False),
        ("1 | a\x1cb", False),
        ("1 | a\x7fb", False),
        ("1 | a\tb", True),
        ("1 | a\n2 <1> | ", False),
    ],
)
def test_a_trained_generator_may_write_other_lines_than_questions(
    text: str, is_allowed: bool
) -> None:
    guide = plan_guide(3, is_question_only=False).text
    assert bool(re.fullmatch(guide, text)) is is_allowed


@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("1 | a b?\n2 | c d?", True),
        ("1 | a b?\n2 | c d?\n3", True),
        ("1 | a b?\n2 | c d?\n", False),
        ("1 | a b?\n2 | c d?\n3 | e f?", False),
        ("1 | a b?\n3", False),
    ],
)
def test_the_guide_lets_a_generator_say_that_it_has_more(text: str, is_allowed: bool) -> None:
    assert bool(re.fullmatch(plan_guide(2, marks_cut=True).text, text)) is is_allowed


def test_the_guide_compiles_quickly_where_it_is_used() -> None:
    llguidance = pytest.importorskip("llguidance")
    for max_nodes in (1, 5, 16):
        for is_question_only in (True, False):
            guide = plan_guide(max_nodes, is_question_only=is_question_only).text
            grammar = llguidance.LLMatcher.grammar_from_regex(guide)
            assert not llguidance.LLMatcher.validate_grammar(grammar)
