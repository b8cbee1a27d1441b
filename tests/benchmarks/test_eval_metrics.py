"""What counts as right, and how sure a figure is."""

from __future__ import annotations

import pytest
from benchmarks import intervals
from benchmarks.accuracy.metrics import contains_all, is_exact, is_verbatim, words
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("26.", "26"),
        (" Iron ", "iron"),
        ("the ribosome", "Ribosome"),
        ("1,234", "1234"),
        ("12.0", "12"),
        ("H₂O", "H2O"),
        ("\u22125", "-5"),
        ("26; 8.", "26; 8"),
        ("26\n8", "26; 8"),
        ("Ca(OH)2", "ca(oh)2"),
        ("Fe(III)", "Fe(III)"),
        ('"Yes"', "yes"),
    ],
)
def test_equal_after_normalisation(answer: str, gold: str) -> None:
    assert is_exact(answer, gold)
    assert contains_all(answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("8; 26", "26; 8"),
        ("26", "26; 8"),
        ("26 8", "26; 8"),
        ("-5", "5"),
        ("1.5", "15"),
        ("t c g", "t a c g"),
        ("", "26"),
    ],
)
def test_different_answers_stay_different(answer: str, gold: str) -> None:
    assert not is_exact(answer, gold)


def test_a_lone_nucleotide_is_no_article() -> None:
    assert words("T A C G a") == ("t", "a", "c", "g", "a")
    assert words("a helix") == ("helix",)


def test_a_sentence_contains_what_it_says() -> None:
    sentence = "The atomic number of iron is 26, and a spider has 8 legs."
    assert contains_all(sentence, "26; 8")
    assert not contains_all(sentence, "26; 6")
    assert not contains_all("It is 126.", "26")


def test_each_part_needs_a_place_of_its_own() -> None:
    assert not contains_all("Both are 4.", "4; 4")
    assert contains_all("One is 4, the other 4.", "4; 4")


def test_nothing_is_contained_in_an_empty_gold_answer() -> None:
    assert not contains_all("anything", "")


def test_verbatim_knows_case() -> None:
    assert is_verbatim("Co\n", "Co")
    assert not is_verbatim("CO", "Co")


@given(st.text(max_size=40), st.text(max_size=40))
def test_exact_implies_contained_and_is_symmetric(a: str, b: str) -> None:
    assert is_exact(a, b) == is_exact(b, a)
    if is_exact(a, b) and words(b.replace(";", " ")):
        assert contains_all(a, b)


def test_an_interval_encloses_its_mean_and_narrows_with_more_records() -> None:
    few, many = intervals.mean([True, False] * 10), intervals.mean([True, False] * 200)
    assert few.low < 0.5 < few.high
    assert few.high - few.low > 2 * (many.high - many.low)
    assert many.value == 0.5


def test_the_same_seed_gives_the_same_interval() -> None:
    values = [1.0, 0.0, 0.0, 1.0, 1.0]
    assert intervals.mean(values, 3) == intervals.mean(values, 3)


def test_records_that_agree_give_an_interval_without_width() -> None:
    assert intervals.mean([True] * 9) == intervals.Estimate(1.0, 1.0, 1.0)
    assert intervals.mean([False]) == intervals.Estimate(0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="no records"):
        intervals.mean([])


def test_pooled_f1_counts_over_all_records() -> None:
    estimate = intervals.pooled_f1([1, 2], [1, 3], [2, 2])
    assert estimate.value == pytest.approx(2 * 3 / 8)
    assert intervals.pooled_f1([0, 0], [0, 0], [0, 0]).value == 1.0
