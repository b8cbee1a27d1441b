from compllm.copies import CopyFilter
from compllm.plan import format_plan, parse_plan


def kept(text: str) -> str:
    copies = CopyFilter()
    lines = (copies.take(line) for line in parse_plan(text).sub_queries)
    return format_plan(line for line in lines if line is not None)


def test_a_plan_without_copies_stays_as_it_is() -> None:
    text = "1 | a #7\n2 <1> | b #1\n3 <1,2> | c #2 #1 #9\n"
    assert kept(text) == text


def test_what_refers_to_a_copy_refers_to_its_first() -> None:
    assert kept("1 | a\n2 | b\n3 | a\n4 <2,3> | #3 less #2\n") == (
        "1 | a\n2 | b\n3 <1,2> | #1 less #2\n"
    )


def test_a_copy_below_a_copy_is_one_too() -> None:
    assert kept("1 | a\n2 <1> | twice #1\n3 | a\n4 <3> | twice #3\n5 <2,4> | #2 plus #4\n") == (
        "1 | a\n2 <1> | twice #1\n3 <2> | #2 plus #2\n"
    )


def test_the_same_words_about_another_parent_are_no_copy() -> None:
    text = "1 | a\n2 | b\n3 <1> | What is its square?\n4 <2> | What is its square?\n"
    assert kept(text) == text


def test_a_number_after_a_hash_that_is_no_parent_is_only_text() -> None:
    assert kept("1 | a\n2 | a\n3 <1> | room #2 of #1\n") == "1 | a\n2 <1> | room #2 of #1\n"


def test_copies_in_a_row_are_a_loop_and_one_is_not() -> None:
    copies = CopyFilter()
    seen = []
    for line in parse_plan("1 | a\n2 | a\n3 | a\n4 | b\n5 | b\n6 | a\n7 | b\n").sub_queries:
        copies.take(line)
        seen.append(copies.is_loop)
    assert seen == [False] * 6 + [True]
    assert copies.num_copies == 5
