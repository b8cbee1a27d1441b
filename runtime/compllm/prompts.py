"""Every prompt of the path, for serving and for training: what a model reads is decided here alone.

A prompt is a tuple of Segments. The chat template's special tokens stand in template segments; the
text of a user, of a model or of the catalogue stands in data segments, so that `<|im_end|>` inside
a question is only characters. What is known early stands first: a node's system text and sub-query
come before its parents' responses, so that their KV blocks can be filled before the parents end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compllm.backend import Prompt, Segment
from compllm.spelling import spelled, spelled_pairs
from compllm.types import Expert

REFERENCE = re.compile(r"#(\d+)")  # an earlier line of the plan, in a sub-query
_MAX_VALUE_CHARS = 40  # of a response that stands in a sub-query
MISSING = "(not known)"  # stands for the response of a parent that failed
UNKNOWN = "I do not know"  # the response of an expert, and the answer, to what is not known


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """How a model family marks turns: `begin`, then `role_start role role_end content turn_end` a
    turn."""

    begin: str
    role_start: str
    role_end: str
    turn_end: str

    @property
    def tokens(self) -> tuple[str, ...]:
        """The special tokens that it writes."""
        parts = (self.begin, *self.turn_tokens)
        return tuple(part for part in parts if part)

    @property
    def turn_tokens(self) -> tuple[str, ...]:
        """Those that mark turns."""
        parts = (self.role_start, self.role_end, self.turn_end)
        return tuple(part.strip() for part in parts if part.strip())


TEMPLATES: dict[str, ChatTemplate] = {
    "chatml": ChatTemplate("", "<|im_start|>", "\n", "<|im_end|>\n"),  # SmolLM2, Qwen2
    "llama3": ChatTemplate(
        "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>"
    ),
}
CHATML = TEMPLATES["chatml"]

GENERATOR_SYSTEM = (
    "Break the question into smaller questions, one per line. "
    "A question that needs earlier answers names their lines in <>."
)

# Few, short and alike: what a 135M model can copy. The last weighs most; a joining one there gave
# the best plans of the orders tried, and examples without a plain list made it join everything.
GENERATOR_SHOTS = (
    (
        "What is the atomic number of carbon plus the number of legs of an ant?",
        "1 | What is the atomic number of carbon?\n"
        "2 | How many legs does an ant have?\n"
        "3 <1,2> | What is #1 plus #2?",
    ),
    (
        "What is the symbol of silver, and what is the capital of Italy?",
        "1 | What is the symbol of silver?\n2 | What is the capital of Italy?",
    ),
    (
        "Is the number of bones in the hand even?",
        "1 | How many bones are in the hand?\n2 <1> | Is #1 even?",
    ),
    ("Who wrote Hamlet?", "1 | Who wrote Hamlet?"),
    (
        "Which is greater, the number of planets or the atomic number of neon?",
        "1 | How many planets are there?\n"
        "2 | What is the atomic number of neon?\n"
        "3 <1,2> | Which is greater, #1 or #2?",
    ),
)

AGGREGATOR_SYSTEM = "Combine the facts into one sentence that answers the question."

# Without an example the untrained base answers one half of the question, or none.
AGGREGATOR_SHOT = (
    "What is the symbol of silver, and what is the capital of Italy?",
    (("What is the symbol of silver?", "Ag"), ("What is the capital of Italy?", "Rome")),
    "The symbol of silver is Ag, and the capital of Italy is Rome.",
)


def chat(
    template: ChatTemplate, turns: Iterable[tuple[str, str]], *, is_open: bool = True
) -> Prompt:
    """Turns of (role, text) as segments; open: the assistant's turn is begun and left to the
    model. A system turn without text is left out: trained models read none."""
    segments: list[Segment] = []
    head = template.begin
    for role, text in turns:
        if role == "system" and not text:
            continue
        head += f"{template.role_start}{role}{template.role_end}"
        segments += (Segment(head, is_template=True), Segment(text, role=role))
        head = template.turn_end
    if is_open:
        head += f"{template.role_start}assistant{template.role_end}"
    segments.append(Segment(head, is_template=True))
    return tuple(segment for segment in segments if segment.text)


def node_prompt(
    expert: Expert,
    sub_query: str,
    parents: Sequence[tuple[str, str | None]] = (),
    template: ChatTemplate = CHATML,
) -> Prompt:
    """What an expert reads for one sub-query. `parents`: (question, response), in the order of
    their ids; None is a missing response.

    Short responses stand in the sub-query in place of `#k`: "Add 5 to 26.". Where one is long or
    missing, questions and responses follow the sub-query as facts.
    """
    filled = with_responses(sub_query, [response for _, response in parents])
    if filled is not None:
        sub_query, parents = filled, ()
    sub_query, parents = spelled(expert, sub_query).text, spelled_pairs(expert, parents)
    user = _with_facts(sub_query, parents) if parents else sub_query
    return chat(template, [("system", expert.system), ("user", user)])


def with_responses(sub_query: str, responses: Sequence[str | None]) -> str | None:
    """The sub-query with the parents' responses in place of `#k`; the lowest id has the first.

    None where a response is missing, not known or no short value, and where the sub-query does not
    name each parent.
    """
    ids = sorted({int(found) for found in REFERENCE.findall(sub_query)})
    if not ids or len(ids) != len(responses) or not all(map(_is_value, responses)):
        return None
    values = dict(zip(ids, responses, strict=True))
    return REFERENCE.sub(lambda found: one_line(str(values[int(found[1])])), sub_query)


def _is_value(response: str | None) -> bool:
    """A name or a number, no sentence: few words, one line, no mark at the end."""
    if response is None or response.strip() in ("", UNKNOWN):
        return False
    text = response.strip()
    return (
        len(text) <= _MAX_VALUE_CHARS
        and "\n" not in text
        and "#" not in text
        and text[-1] not in ".!?:;"
    )


def generator_prompt(
    query: str, template: ChatTemplate = CHATML, *, is_few_shot: bool = True
) -> Prompt:
    """What the sub-query generator reads. The system text and the examples are for a base that was
    never trained to plan: a trained one reads the question alone."""
    turns: list[tuple[str, str]] = []
    if is_few_shot:
        turns.append(("system", GENERATOR_SYSTEM))
        for question, plan in GENERATOR_SHOTS:
            turns += (("user", question), ("assistant", plan))
    turns.append(("user", one_line(query)))
    return chat(template, turns)


def aggregator_prompt(
    query: str,
    leaves: Sequence[tuple[str, str | None]],
    template: ChatTemplate = CHATML,
    *,
    is_few_shot: bool = True,
) -> Prompt:
    """What the aggregator reads: the query and the leaves' questions and responses, nothing else of
    this query. The system text and the example are for a base that was never trained to
    aggregate."""
    turns: list[tuple[str, str]] = []
    if is_few_shot:
        question, facts, answer = AGGREGATOR_SHOT
        turns.append(("system", AGGREGATOR_SYSTEM))
        turns += (("user", _with_facts(question, facts)), ("assistant", answer))
    turns.append(("user", _with_facts(query, leaves)))
    return chat(template, turns)


def one_line(text: str) -> str:
    """The text with every run of white space as one blank: a plan line's text cannot hold a
    newline."""
    return " ".join(text.split())


def prompt_text(prompt: Prompt) -> str:
    """The whole prompt as one string, for people, logs and tests."""
    return "".join(segment.text for segment in prompt)


def _with_facts(question: str, pairs: Iterable[tuple[str, str | None]]) -> str:
    lines = [
        f"- {one_line(asked)} {MISSING if response is None else one_line(response)}"
        for asked, response in pairs
    ]
    return "\n".join([question, "", "Known facts:", *lines])
