"""spelling: words that an expert reads letter by letter, and its responses back."""

from __future__ import annotations

import pytest

from compllm.catalogue import load_catalogue
from compllm.prompts import node_prompt, prompt_text
from compllm.spelling import spelled
from compllm.types import Expert

BIOLOGY = load_catalogue().expert("biology")
PLAIN = Expert("plain", "anything", "")


@pytest.mark.parametrize("codon", ["AUG", "A-U-G", "A U G", "aug", "a-u-g"])
def test_a_codon_is_read_alike_however_it_is_written(codon: str) -> None:
    text = spelled(BIOLOGY, f"Which amino acid does the codon {codon} encode?").text
    assert text == "Which amino acid does the codon A U G encode?"


@pytest.mark.parametrize(
    ("question", "response", "written"),
    [
        ("What is the complement of ATGC?", "T A C G", "TACG"),
        ("What is the complement of A-T-G-C?", "T A C G", "T-A-C-G"),
        ("What is the complement of A T G C?", "T A C G", "T A C G"),
        ("What is the anticodon of the codon aug?", "U A C", "uac"),
        ("Which amino acid does AUG encode?", "methionine", "methionine"),
        ("Is AUG a stop codon?", "no", "no"),
        ("Which vitamin is in oranges?", "vitamin C", "vitamin C"),
    ],
)
def test_a_response_is_written_as_the_question_was(
    question: str, response: str, written: str
) -> None:
    assert spelled(BIOLOGY, question).back(response) == written


@pytest.mark.parametrize(
    "text",
    ["How many legs does a cat have?", "What does DNA stand for?", "What is the G in A-B-G?", ""],
)
def test_other_words_are_left(text: str) -> None:
    assert spelled(BIOLOGY, text).text == text


def test_an_expert_without_a_pattern_reads_words() -> None:
    assert spelled(PLAIN, "What is AUG?").text == "What is AUG?"


def test_a_node_reads_its_parents_spelled_too() -> None:
    parents = [("What is the codon AUG?", "AUG")]
    text = prompt_text(node_prompt(BIOLOGY, "Does #1 pair with CAU?", parents))
    assert "Does A U G pair with C A U?" in text
    parents = [("What is the codon AUG?", "It is AUG.")]
    text = prompt_text(node_prompt(BIOLOGY, "Does #1 pair with CAU?", parents))
    assert "Does #1 pair with C A U?" in text
    assert "- What is the codon A U G? It is A U G." in text
