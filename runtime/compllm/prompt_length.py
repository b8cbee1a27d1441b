"""Whether a prompt fits into the engine, found out in tokens before anything is sent.

An engine holds `max_seq_len` tokens of a request: its prompt and the new tokens that it asks for.
A question is measured once, at the start, against every step that reads it. A sub-query with its
parents' responses is measured when it is sent. Only a text of more bytes than the engine has room
for is tokenised here: no tokenizer makes more tokens than there are bytes. A backend that does not
know its engine's length refuses nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from compllm.backend import Backend, CountsTokens, Prompt

_MARKS = 16  # tokens that a tokenizer may add of its own, such as one at a text's begin


@dataclass(frozen=True, slots=True)
class Reader:
    """A step that reads a text: its prompt around that text, and the new tokens it asks for."""

    model: str
    prompt: Callable[[str], Prompt]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Excess:
    """A text that does not fit."""

    num_tokens: int
    limit: int  # below 1: the new tokens alone fill the engine

    def __str__(self) -> str:
        if self.limit < 1:
            return (
                f"{self.num_tokens} tokens; the new tokens that are asked for leave no room in the "
                "engine: lower limits.max_node_tokens and limits.max_answer_tokens"
            )
        return f"{self.num_tokens} tokens; the limit is {self.limit}"


async def excess_of_prompt(
    backend: Backend, model: str, prompt: Prompt, max_tokens: int
) -> Excess | None:
    """None where prompt and new tokens fit, or the backend does not know."""
    if not isinstance(backend, CountsTokens) or (length := backend.max_seq_len(model)) is None:
        return None
    if _num_bytes(prompt) + _MARKS + max_tokens <= length:
        return None
    num_tokens = await backend.num_tokens(prompt)
    return Excess(num_tokens, length - max_tokens) if num_tokens + max_tokens > length else None


async def excess_of_text(backend: Backend, text: str, readers: Iterable[Reader]) -> Excess | None:
    """None where each of its readers can hold the text. The limit is that of the tightest one.

    A reader that has no room for any text counts as none: its engine is too short for that step.
    """
    limits: list[int] = []
    num_tokens = 0
    for reader in readers:
        excess = await excess_of_prompt(
            backend, reader.model, reader.prompt(text), reader.max_tokens
        )
        if excess is not None and isinstance(backend, CountsTokens):
            around = await backend.num_tokens(reader.prompt(""))
            if excess.limit > around:
                limits.append(excess.limit - around)
                num_tokens = max(num_tokens, excess.num_tokens - around)
    return Excess(num_tokens, min(limits)) if limits else None


def _num_bytes(prompt: Prompt) -> int:
    return sum(len(segment.text.encode("utf-8", "replace")) for segment in prompt)
