"""ownership: lines wait until an expert owns one that stands alone."""

from __future__ import annotations

from compllm.routing.ownership import Ownership
from compllm.types import Route, SubQuery

OWN = Route("chemistry", 0.9, is_fallback=False)
BASE = Route("base", 0.1, is_fallback=True)
FIRST, SECOND = SubQuery(1, "What is A?"), SubQuery(2, "What is B?")
ABOVE = SubQuery(3, "Is #1 larger than #2?", (1, 2))


def test_an_experts_line_runs_at_once() -> None:
    owned = Ownership()
    assert owned.admit([(FIRST, OWN)]) == [(FIRST, OWN)]
    assert owned.admit([(SECOND, BASE)]) == [(SECOND, BASE)]
    assert not owned.is_unowned


def test_lines_of_the_base_wait_for_an_experts_line_and_keep_their_order() -> None:
    owned = Ownership()
    assert owned.admit([(FIRST, BASE)]) == []
    assert owned.admit([(SECOND, OWN)]) == [(FIRST, BASE), (SECOND, OWN)]


def test_a_line_with_parents_makes_no_owner() -> None:
    owned = Ownership()
    assert owned.admit([(FIRST, BASE), (SECOND, BASE), (ABOVE, OWN)]) == []
    assert owned.is_unowned


def test_a_given_plan_runs_as_it_is() -> None:
    owned = Ownership()
    assert owned.admit([(FIRST, BASE)], is_given=True) == [(FIRST, BASE)]
    assert not owned.is_unowned


def test_a_fall_back_replaces_the_lines_that_waited() -> None:
    owned = Ownership()
    owned.admit([(FIRST, BASE)])
    assert owned.admit([(SECOND, BASE)], is_given=True) == [(SECOND, BASE)]
    assert not owned.is_unowned
