"""Training sets of the aggregator: several leaves' responses, joined in the order of the query."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from compllm.build_scripts.datasets.bank import DOMAINS, Bank
from compllm.build_scripts.datasets.everyday import Everyday
from compllm.build_scripts.datasets.expressions import leaves
from compllm.build_scripts.datasets.invented import invent_answer, invent_name, read_invented
from compllm.build_scripts.datasets.kinds import Split, choose
from compllm.build_scripts.datasets.wordings import read_joiners
from compllm.prompts import UNKNOWN

JOINT = "; "  # between the responses


def aggregator_set(
    bank: Bank,
    split: Split,
    rng: random.Random,
    count: int,
    composites: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """`composites`: records of -P and -All of this split; about a third of the examples are those
    with several leaves."""
    several = [record for record in composites if len(leaves(record["parents"])) > 1]
    taken = rng.sample(several, min(len(several), count // 3))
    pairs = [_of_composite(record) for record in taken]
    pairs += [_made(bank, split, rng) for _ in range(count - len(pairs))]
    rng.shuffle(pairs)
    return [
        {
            "id": f"aggregator-{split}-{index:04d}",
            "question": question,
            "facts": [{"question": asked, "response": response} for asked, response in facts],
            "answer": JOINT.join(response for _, response in facts),
        }
        for index, (question, facts) in enumerate(pairs)
    ]


def _of_composite(record: dict[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    ends = leaves(record["parents"])
    facts = [(record["steps"][index], record["answers"][index]) for index in ends]
    return record["question"], facts


def _made(bank: Bank, split: Split, rng: random.Random) -> tuple[str, list[tuple[str, str]]]:
    """Two to five questions of all kinds, a third of them about made-up things."""
    facts = [_fact(bank, split, rng) for _ in range(rng.choice((2, 3, 3, 4, 4, 5)))]
    joiner = read_joiners(split).draw(rng, are_nouns=False)
    return joiner.join([asked for asked, _ in facts], are_nouns=False), facts


def _fact(bank: Bank, split: Split, rng: random.Random) -> tuple[str, str]:
    if rng.random() < 0.35:
        table = read_invented(split)
        name = invent_name(rng, split)
        if rng.random() < 0.5:
            return rng.choice(table["questions"]).format(e=name), invent_answer(rng, split)
        noun = rng.choice(table["facts"] + table["counts"]).format(e=name)
        return f"What is {noun}?", invent_answer(rng, split)
    kind = choose(rng, bank.of(rng.choice(DOMAINS)))
    operands = rng.choice([item for item in kind.items if kind.belongs(item, split)])
    asked = rng.choice(kind.in_split(split)).question(operands)
    # An expert may be wrong: the aggregator repeats what it was told.
    return asked, kind.answer(operands) if rng.random() < 0.8 else invent_answer(rng, split)


_SENTENCES = (
    "It is known for {a}", "The answer is {a}", "This is {a}, which people have used for centuries",
    "{A} is the one that most people name first", "It was {a}, as far as records go",
    "There are several, and {a} is the best known of them",
    "You can think of it as {a} with a longer history",
    "It depends on where you live, but it is usually {a}",
)  # fmt: skip
_NUM_KEPT = {"train": 350, "validation": 40, "test": 40}
_SHARE_UNKNOWN = 0.12
_SHARE_SENTENCE = 0.3


def more_aggregations(
    bank: Bank,
    split: Split,
    rng: random.Random,
    count: int,
    known: Sequence[dict[str, Any]],
    people: Sequence[str],
) -> list[dict[str, Any]]:
    """Further training: `count` everyday questions of several leaves, and a share of the examples
    known before. Responses are short, whole sentences as the base writes them, or "I do not know";
    what they say means nothing."""
    drawn = Everyday(bank, split, rng, people)
    found: list[tuple[str, list[str]]] = []
    while len(found) < count:
        (asked,) = drawn.many(1)
        ends = leaves([list(above) for above in asked.parents])
        if len(ends) > 1:
            found.append((asked.text, [asked.steps[index] for index in ends]))
    rows = _with_responses(found, split, rng)
    rows += rng.sample(list(known), min(_NUM_KEPT[split], len(known)))
    rng.shuffle(rows)
    return rows


def _with_responses(
    found: Sequence[tuple[str, Sequence[str]]], split: Split, rng: random.Random
) -> list[dict[str, Any]]:
    rows = []
    for index, (text, questions) in enumerate(found):
        responses = [_response(question, split, rng) for question in questions]
        rows.append(
            {
                "id": f"aggregator-more-{split}-{index:04d}",
                "question": text,
                "facts": [
                    {"question": question, "response": response}
                    for question, response in zip(questions, responses, strict=True)
                ],
                "answer": JOINT.join(response.removesuffix(".") for response in responses),
            }
        )
    return rows


def _response(question: str, split: Split, rng: random.Random) -> str:
    if rng.random() < _SHARE_UNKNOWN:
        return UNKNOWN
    answer = invent_answer(rng, split)
    if rng.random() >= _SHARE_SENTENCE:
        return rng.choice(
            (answer, str(rng.randint(1, 60)), rng.choice(("yes", "no", "Fe", "A C G")))
        )
    if question.startswith("What is the ") and rng.random() < 0.6:
        return f"The {question.removeprefix('What is the ').removesuffix('?')} is {answer}."
    sentence = rng.choice(_SENTENCES)
    return sentence.format(a=answer, A=answer[0].upper() + answer[1:]) + "."
