"""Training sets of the aggregator: several leaves' responses, joined in the order of the query."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from compllm.build_scripts.datasets.bank import DOMAINS, Bank
from compllm.build_scripts.datasets.expressions import leaves
from compllm.build_scripts.datasets.invented import invent_answer, invent_name, read_invented
from compllm.build_scripts.datasets.kinds import Split, choose
from compllm.build_scripts.datasets.wordings import read_joiners

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
