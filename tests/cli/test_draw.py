import pytest

from compllm.cli.draw import draw_png
from compllm.graph import QueryGraph
from compllm.types import Plan, SubQuery

DIAMOND = Plan(
    (
        SubQuery(1, "What costs $5 or $6?"),
        SubQuery(2, "Left, with _x^2 and \\frac?", (1,)),
        SubQuery(3, "Right?", (1,)),
        SubQuery(4, "Both?", (2, 3)),
    )
)


@pytest.mark.parametrize("experts", [None, {1: "chemistry", 2: "biology", 3: "base", 4: "base"}])
def test_plan_becomes_a_png(experts: dict[int, str] | None) -> None:
    picture = draw_png(QueryGraph.from_plan(DIAMOND), experts)
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")


def test_widest_plan_allowed_can_be_drawn() -> None:
    wide = Plan(tuple(SubQuery(number, "?") for number in range(1, 65)))
    assert draw_png(QueryGraph.from_plan(wide)).startswith(b"\x89PNG")
