"""How many tokens a set costs in training: prompt and answer, chat overhead included."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compllm.backend import Prompt, Segment
from compllm.backends.tokenizer import Tokenizer
from compllm.prompts import aggregator_prompt, generator_prompt, node_prompt
from compllm.types import Expert

TRAINED = Expert("trained", domain="", system="")  # a trained expert has no system text


class TokenCounter:
    """Counts with the base model's own tokenizer and the prompts that serving uses."""

    def __init__(self, base: Path) -> None:
        """Raises ConfigError when there is no tokenizer."""
        self._tokenizer = Tokenizer.from_dir(base)
        self._known: dict[Segment, int] = {}  # template and system segments repeat in every row

    def total(self, rows: Iterable[dict[str, Any]]) -> int:
        return sum(self.row(row) for row in rows)

    def row(self, row: dict[str, Any]) -> int:
        """One example; a composite counts as the question and its final answer."""
        prompt, response = training_pair(row)
        ends_turn = 1
        return sum(map(self._segment, (*prompt, Segment(response)))) + ends_turn

    def _segment(self, segment: Segment) -> int:
        if segment not in self._known:
            self._known[segment] = len(self._tokenizer.encode((segment,)))
        return self._known[segment]


def training_pair(row: dict[str, Any]) -> tuple[Prompt, str]:
    """What the model reads and what it should write, for a row of any set."""
    if "plan" in row:
        return generator_prompt(row["question"], is_few_shot=False), row["plan"]
    if "facts" in row:
        facts = [(fact["question"], fact["response"]) for fact in row["facts"]]
        return aggregator_prompt(row["question"], facts, is_few_shot=False), row["answer"]
    if "steps" in row:
        return node_prompt(TRAINED, row["question"]), row["answer"]
    parents = [(parent["question"], parent["response"]) for parent in row["parents"]]
    return node_prompt(TRAINED, row["question"], parents), row["answer"]
