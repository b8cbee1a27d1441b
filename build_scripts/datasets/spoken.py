"""Questions as people type them: contractions, small letters, polite openings, no closing mark.

The experts' further training uses it (refresh.py), and the generator's (everyday.py). Each split
has openings of its own.
"""

from __future__ import annotations

import random

from compllm.build_scripts.datasets.kinds import Operands, Split

_NOUN_FORMS: dict[Split, tuple[str, ...]] = {
    "train": (
        "What's {a}?", "what is {a}", "what's {a}", "{A}?", "{a}", "Tell me {a}.", "Give me {a}.",
        "Do you know {a}?", "Can you tell me {a}?", "Please give me {a}.", "Find {a}.", "Name {a}.",
        "I need {a}.", "I'd like to know {a}.", "Could you give me {a}?", "State {a}.",
        "Show me {a}.", "What would {a} be?", "Write down {a}.", "Look up {a}.", "whats {a}?",
    ),
    "validation": ("Hey, what's {a}?", "Let me know {a}.", "Just {a}, please."),
    "test": ("So what is {a}?",),
}  # fmt: skip
_OPENINGS: dict[Split, tuple[str, ...]] = {
    "train": (
        "Tell me: ", "Can you tell me: ", "Please answer: ", "Quick question: ", "Hi! ", "Hello, ",
        "I wonder: ", "Do you know: ", "One question: ", "Please: ", "So, ", "Say, ", "Okay, ",
    ),
    "validation": ("Hey, ", "Small question: "),
    "test": ("Right, ",),
}  # fmt: skip


def spoken_noun(rng: random.Random, noun: str, split: Split) -> str:
    """One way to ask for what a noun phrase names."""
    form = rng.choice(_NOUN_FORMS[split])
    return form.format(a=noun, A=noun[0].upper() + noun[1:])


def spoken_question(rng: random.Random, question: str, split: Split) -> str:
    """The question with another opening, a small first letter or without its mark."""
    way = rng.random()
    if way < 0.35:
        return question[0].lower() + question[1:].rstrip("?")
    if way < 0.5:
        return question.rstrip("?")
    if way < 0.6:
        return question + rng.choice((" Thanks!", " Please.", " Thank you."))
    if question.startswith("What is ") and way < 0.75:
        return "What's " + question.removeprefix("What is ")
    return rng.choice(_OPENINGS[split]) + question[0].lower() + question[1:]


def maybe_spoken(rng: random.Random, question: str, split: Split) -> str:
    return spoken_question(rng, question, split) if rng.random() < 0.25 else question


def respelled(rng: random.Random, bases: str, weights: tuple[float, ...] = (3, 1, 1)) -> str:
    """Bases spelled apart ("A U G") as people write them: AUG, aug or A-U-G."""
    together = bases.replace(" ", "")
    ways = (together, together.lower(), bases.replace(" ", "-"))
    return rng.choices(ways, weights)[0]


def possessive(rng: random.Random, noun: str, operands: Operands, share: float = 0.3) -> str:
    """ "the period of iron" as "iron's period", where the noun phrase has that form."""
    (first, *others), end = operands, f" of {operands[0]}"
    if others or not (noun.startswith("the ") and noun.endswith(end)) or rng.random() >= share:
        return noun
    return f"{first}'s {noun[4:].removesuffix(end)}"
