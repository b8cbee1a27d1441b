"""asked: the leaves, and the steps that the query asks in its own words."""

from __future__ import annotations

import pytest

from compllm.asked import asked_ids
from compllm.types import SubQuery


def ids(query: str, *lines: SubQuery) -> tuple[int, ...]:
    above = {parent for line in lines for parent in line.parents}
    return asked_ids(query, lines, [line.id for line in lines if line.id not in above])


NUMBER = SubQuery(1, "What is manganese's atomic number?")
EVEN = SubQuery(2, "Is #1 even?", (1,))


@pytest.mark.parametrize(
    "query",
    [
        "What's manganese's atomic number, and is that number even?",
        "what is manganese's atomic number? Is it even?",
        "Tell me: What is  manganese's atomic number? And is it even?",
    ],
)
def test_a_step_that_the_query_asks_is_asked(query: str) -> None:
    assert ids(query, NUMBER, EVEN) == (1, 2)


@pytest.mark.parametrize(
    "query",
    [
        "Is manganese's atomic number even?",
        "Take manganese's atomic number. Is that number even?",
        "What is manganese's atomic number plus 3?",
    ],
)
def test_a_step_that_is_only_named_is_not(query: str) -> None:
    plus = SubQuery(2, "What is #1 plus 3?", (1,))
    assert ids(query, NUMBER, plus if "plus" in query else EVEN) == (2,)


@pytest.mark.parametrize(
    "query",
    [
        "Translate CGA, then tell me how many codons that amino acid has.",
        "Translate CGA, and let me know how many codons that amino acid has.",
        "find the amino acid that CGA encodes. how many codons does that amino acid have?",
        "Write the amino acid for CGA and say how many codons it has.",
        "CGA encodes something. Name the amino acid and say how many codons it has.",
    ],
)
def test_a_command_asks_for_its_result(query: str) -> None:
    lines = AMINO, SubQuery(2, "How many codons does #1 have?", (1,))
    assert ids(query, *lines) == (1, 2)


def test_transcribing_asks_for_the_strand() -> None:
    query = "Transcribe the template strand GCT, and let me know which amino acid that codon gives."
    strand = SubQuery(1, "What mRNA is made from the template strand GCT?")
    amino = SubQuery(2, "Which amino acid does #1 encode?", (1,))
    assert ids(query, strand, amino) == (1, 2)


def test_a_command_inside_a_clause_is_a_step_on_the_way() -> None:
    number = SubQuery(1, "What is the atomic number of iron?")
    assert ids(
        "Find the atomic number of iron, then double it.", number, SubQuery(2, "Double #1.", (1,))
    ) == (2,)
    assert ids(
        "Write x for the atomic number of iron. What is twice x?",
        number,
        SubQuery(2, "What is twice #1?", (1,)),
    ) == (2,)


def test_leaves_are_asked_whatever_the_query_says() -> None:
    assert ids("Both, please.", NUMBER, SubQuery(2, "What is neon?")) == (1, 2)


AMINO = SubQuery(1, "Which amino acid does CGA encode?")
CODONS = SubQuery(2, "How many codons does #1 have?", (1,))
MORE = SubQuery(3, "Is #2 greater than 4?", (2,))


@pytest.mark.parametrize("it", ["it", "that amino acid", "the amino acid"])
def test_a_step_about_an_answer_is_asked_where_the_query_has_a_pronoun(it: str) -> None:
    """ "How many codons does it have" was left out: its line says `#1`."""
    query = (
        f"Which amino acid does CGA encode, how many codons does {it} have, and is that above 4?"
    )
    assert ids(query, AMINO, CODONS, MORE) == (1, 2, 3)


def test_its_property_is_asked_and_a_property_on_the_way_is_not() -> None:
    symbol = SubQuery(1, "Which element has the symbol Cr?")
    number = SubQuery(2, "What is the atomic number of #1?", (1,))
    even = SubQuery(3, "Is #2 even?", (2,))
    asked = "Which element has the symbol Cr, what's its atomic number, and is that number even?"
    assert ids(asked, symbol, number, even) == (1, 2, 3)
    assert ids("Is the atomic number of the element Cr even?", symbol, number, even) == (3,)


def test_what_a_query_wants_to_be_told_is_asked() -> None:
    number = SubQuery(1, "What is the atomic number of iron?")
    even = SubQuery(2, "Is #1 even?", (1,))
    told = "Tell me the atomic number of iron and whether it is even."
    assert ids(told, number, even) == (1, 2)
    assert ids("Find the atomic number of iron and double it.", number, even) == (2,)


@pytest.mark.parametrize(
    "query",
    [
        "12 plus 21 makes what? Which element has that number, and what's the symbol?",
        "What's 12 plus 21, which element is that, and what's its symbol?",
        "What is 12 plus 21? Which element has that number? Its symbol?",
    ],
)
def test_a_query_of_as_many_asking_clauses_as_steps_asks_for_each(query: str) -> None:
    lines = (
        SubQuery(1, "What is 12 plus 21?"),
        SubQuery(2, "Which element has the atomic number #1?", (1,)),
        SubQuery(3, "What is the symbol of #2?", (2,)),
    )
    assert ids(query, *lines) == (1, 2, 3)


@pytest.mark.parametrize(
    "query",
    [
        "What is the symbol of the element which has 12 plus 21 protons?",
        "Add 12 and 21. What is the symbol of the element with that number?",
        "Work out 12 plus 21, find the element and tell me its symbol.",
    ],
)
def test_steps_on_the_way_to_one_asked_thing_are_not_asked(query: str) -> None:
    lines = (
        SubQuery(1, "Add 12 and 21."),
        SubQuery(2, "Which element has the atomic number #1?", (1,)),
        SubQuery(3, "What is the symbol of #2?", (2,)),
    )
    assert ids(query, *lines) == (3,)


SQUARE = SubQuery(1, "What is the square of 4?")
ELEMENT = SubQuery(2, "Which element has the atomic number #1?", (1,))
PERIOD = SubQuery(3, "What is the period of #2?", (2,))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Tell me the square of 4, the element with that number, and its period.", (1, 2, 3)),
        ("Name the element whose number is the square of 4, and its period.", (2, 3)),
        ("Which period is the element in whose atomic number is the square of 4?", (3,)),
        ("Take the square of 4. Which element has that number, and what's its period?", (2, 3)),
    ],
)
def test_a_clause_asks_for_the_steps_that_no_other_of_its_steps_uses(
    query: str, expected: tuple[int, ...]
) -> None:
    assert ids(query, SQUARE, ELEMENT, PERIOD) == expected


def test_an_asking_clause_without_a_step_asks_for_the_steps_before_it() -> None:
    query = "If I add the periods of neon and iron, what do I get, and is the result prime?"
    neon, iron = (
        SubQuery(k, f"What is the period of {name}?") for k, name in ((1, "neon"), (2, "iron"))
    )
    lines = (neon, iron, SubQuery(3, "Add #1 and #2.", (1, 2)), SubQuery(4, "Is #3 prime?", (3,)))
    assert ids(query, *lines) == (3, 4)


def test_an_operand_of_a_command_that_is_asked_for_is_not_asked() -> None:
    query = "What's double neon's proton count, what's that minus 5, and is the final one odd?"
    lines = (
        SubQuery(1, "What is neon's proton count?"),
        SubQuery(2, "Double #1.", (1,)),
        SubQuery(3, "What is #2 minus 5?", (2,)),
        SubQuery(4, "Is #3 odd?", (3,)),
    )
    assert ids(query, *lines) == (2, 3, 4)


def test_a_list_of_operands_is_one_clause_with_its_operation() -> None:
    query = "Which is the largest of the period of neon, the group of iron and the number 4?"
    lines = (
        SubQuery(1, "What is the period of neon?"),
        SubQuery(2, "What is the group of iron?"),
        SubQuery(3, "Which is the largest: #1, #2 or 4?", (1, 2)),
    )
    assert ids(query, *lines) == (3,)


def test_a_step_with_as_many_words_in_two_clauses_belongs_to_the_shorter_one() -> None:
    query = "Which amino acid does the codon GAA encode and how many codons encode it?"
    amino = SubQuery(1, "Which amino acid does the codon GAA encode?")
    assert ids(query, amino, SubQuery(2, "How many codons encode #1?", (1,))) == (1, 2)


CHROMOSOMES_LINE = SubQuery(1, "How many chromosomes does a human cell have?")
HALF_LINE = SubQuery(2, "Halve #1.", (1,))
PRIME_LINE = SubQuery(3, "Is #2 a prime number?", (2,))


@pytest.mark.parametrize(
    "asks", ["What number is that", "Which number do you get", "What is it", "what do i get then"]
)
def test_a_clause_that_asks_what_that_is_asks_the_step_before_it(asks: str) -> None:
    """The 23 was left out: "number" was taken for a word of the step about primes."""
    query = f"Take half the number of chromosomes in a human cell. {asks}, and is it prime?"
    assert ids(query, CHROMOSOMES_LINE, HALF_LINE, PRIME_LINE) == (2, 3)


LEGS_LINE = SubQuery(1, "How many legs does a spider have?")
TRIPLED_LINE = SubQuery(2, "Triple #1.", (1,))
ELEMENT_LINE = SubQuery(3, "Which element has the atomic number #2?", (2,))
BLOCK_LINE = SubQuery(4, "What is the block of #3?", (3,))


def test_a_thing_and_its_property_are_both_asked() -> None:
    query = "Triple the legs of a spider. Name the element with that atomic number and its block."
    assert ids(query, LEGS_LINE, TRIPLED_LINE, ELEMENT_LINE, BLOCK_LINE) == (3, 4)


def test_a_sum_of_a_thing_s_properties_asks_for_the_sum_alone() -> None:
    group = SubQuery(2, "What is the group of manganese?")
    total = SubQuery(3, "Add #1 and #2.", (1, 2))
    query = "What is the sum of manganese's atomic number and its group?"
    assert ids(query, NUMBER, group, total) == (3,)


@pytest.mark.parametrize("how", ["How long is", "How big is", "How heavy is"])
def test_every_question_with_how_asks(how: str) -> None:
    """The 6 of "How long is the strand, what is that length times 12?" was left out."""
    first = SubQuery(1, f"{how} the strand ATGCAG?")
    query = f"{how} the strand ATGCAG, what is that times 12, and is the product even?"
    lines = (first, SubQuery(2, "What is #1 times 12?", (1,)), SubQuery(3, "Is #2 even?", (2,)))
    assert ids(query, *lines) == (1, 2, 3)


def test_steps_named_one_after_the_other_are_all_asked() -> None:
    """Only the symbol was given: no verb said that the others are wanted, too."""
    multiple = SubQuery(1, "What is the lowest common multiple of 6 and 9?")
    element = SubQuery(2, "Which element has the atomic number #1?", (1,))
    symbol = SubQuery(3, "What is the symbol of #2?", (2,))
    query = "lowest common multiple of 6 and 9, then the element with that number, then its symbol"
    assert ids(query, multiple, element, symbol) == (1, 2, 3)


def test_operands_of_an_operation_that_is_named_first_are_not_asked() -> None:
    iron = SubQuery(1, "What is the atomic number of iron?")
    codons = SubQuery(2, "How many codons does glycine have?")
    total = SubQuery(3, "Add #1 and #2.", (1, 2))
    query = "Add the atomic number of iron, the number of codons of glycine"
    assert ids(query, iron, codons, total) == (3,)
