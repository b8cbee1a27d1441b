from compllm.cli.base_plans import KNOWN, PlanQuality, quality
from compllm.plan import fallback_plan, format_plan, parse_plan
from compllm.types import Plan

RIGHT = [parse_plan(text) for _, text in KNOWN]


def changed(number: int, plan: Plan) -> list[Plan]:
    return [*RIGHT[:number], plan, *RIGHT[number + 1 :]]


def test_the_known_plans_themselves_are_all_right() -> None:
    assert quality(RIGHT) == PlanQuality(20, 20, 20, 20)
    assert [format_plan(plan.sub_queries).strip() for plan in RIGHT] == [text for _, text in KNOWN]


def test_an_unusable_plan_is_not_counted_though_its_graph_is_right() -> None:
    assert quality(changed(0, fallback_plan(KNOWN[0][0], "no plan"))) == PlanQuality(20, 19, 19, 19)


def test_other_words_have_the_same_parts_and_other_parents_do_not() -> None:
    other_words = parse_plan("1 | Which is Portugal's capital?")
    assert quality(changed(0, other_words)) == PlanQuality(20, 20, 20, 19)
    apart = parse_plan("1 | Who painted Guernica?\n2 | Where was he born?")
    assert quality(changed(5, apart)) == PlanQuality(20, 20, 19, 19)


def test_the_report_is_one_line_for_people() -> None:
    assert str(PlanQuality(20, 18, 11, 7)) == (
        "of 20 questions 18 have a usable plan, 11 the right parts, 7 word for word"
    )
