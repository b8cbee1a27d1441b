"""The base model asked to choose the expert: a router without vectors, for comparison.

It reads the experts' domains and the question and writes one name, held to the names by a guide. It
has no score, so it cannot abstain by a floor: "none" is one of the names.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

from compllm.backend import Backend, GenerateRequest, Guide, Prompt, collect
from compllm.prompts import CHATML, ChatTemplate, chat, one_line
from compllm.types import Expert, Route, SamplingParams

NONE = "none"
_MAX_TOKENS = 24  # of a name


@dataclass(frozen=True, slots=True)
class LLMRouter:
    """Routes texts by asking a model. `shots`: (question, name) pairs that show how."""

    backend: Backend
    experts: tuple[Expert, ...]
    base: Expert
    template: ChatTemplate = CHATML
    shots: tuple[tuple[str, str], ...] = ()
    max_in_flight: int = 16

    async def route(self, texts: Sequence[str]) -> tuple[Route, ...]:
        """A route for each text, in their order; `similarity` is 1 where an expert was named, else
        0. Raises what the backend raises."""
        slots = asyncio.Semaphore(self.max_in_flight)

        async def ask(number: int, text: str) -> Route:
            async with slots:
                answer, _ = await collect(self.backend, self._request(number, text))
            return self._read(answer)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(*pair)) for pair in enumerate(texts)]
        return tuple(task.result() for task in tasks)

    def prompt(self, text: str) -> Prompt:
        """What the model reads for one question."""
        listed = "\n".join(f"{each.name}: {each.domain}" for each in self.experts)
        system = f"Name the field of the question.\n{listed}\n{NONE}: anything else"
        turns = [("system", system)]
        for question, name in self.shots:
            turns += (("user", question), ("assistant", name))
        return chat(self.template, [*turns, ("user", one_line(text))])

    def _request(self, number: int, text: str) -> GenerateRequest:
        names = "|".join(re.escape(name) for name in (*self._names(), NONE))
        return GenerateRequest(
            f"route-{id(self):x}-{number}",
            self.prompt(text),
            SamplingParams(max_tokens=_MAX_TOKENS),
            self.base.model,
            guide=Guide("regex", f"({names})"),
        )

    def _read(self, answer: str) -> Route:
        # The guide may have been cut short by the token limit: nothing is taken for granted.
        name = answer.strip()
        if name in self._names():
            return Route(name, 1.0, is_fallback=False)
        return Route(self.base.name, 0.0, is_fallback=True)

    def _names(self) -> tuple[str, ...]:
        return tuple(expert.name for expert in self.experts)
