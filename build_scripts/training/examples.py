"""Data set files -> token ids: the first step of training.

Every prompt is made by `compllm.prompts` and tokenised by `compllm.backends.tokenizer`, as serving
does, so that a trained adapter meets at run time the very ids it was trained on. Which role a
record trains follows from what it holds: a plan (generator), facts (aggregator), else an answer
(expert, or a model that answers a composite question in one go).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compllm.backend import Prompt, Segment
from compllm.backends.tokenizer import Tokenizer
from compllm.build_scripts.json_lines import read_json_lines
from compllm.errors import ConfigError
from compllm.prompts import (
    CHATML,
    ChatTemplate,
    aggregator_prompt,
    generator_prompt,
    node_prompt,
)
from compllm.types import Expert

SPLITS = ("train", "validation", "test")
_KINDS = ("kind", "source", "set")  # what accuracy is counted by: of facts, plans, composites
# A trained expert reads no system text, whatever its name: its adapter says who it is.
_TRAINED = Expert("trained", "", system="")


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and the response to learn. Only the response counts in the loss."""

    id: str
    kind: str  # what accuracy is counted by
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]  # ends with the token that ends a turn

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + len(self.response_ids)


def read_records(directory: Path, split: str) -> Iterator[dict[str, Any]]:
    """The JSON objects of `directory`/`split`.jsonl. Raises ConfigError with file and line."""
    path = directory / f"{split}.jsonl"
    if not path.is_file():
        raise ConfigError(
            f"{path} is no file: give a folder that holds train.jsonl and validation.jsonl, as "
            "make_datasets.py writes it"
        )
    for number, record in read_json_lines(path):
        record["_where"] = f"{path}:{number}"
        yield record


def record_prompt(record: dict[str, Any], template: ChatTemplate = CHATML) -> Prompt:
    """What a trained model reads for this record when it is served."""
    question = _text(record, "question")
    if "plan" in record:
        return generator_prompt(question, template, is_few_shot=False)
    if "facts" in record:
        return aggregator_prompt(question, _pairs(record, "facts"), template, is_few_shot=False)
    # A composite question answered in one go: its parents are those of its steps.
    parents = [] if "steps" in record else _pairs(record, "parents")
    return node_prompt(_TRAINED, question, parents, template)


def record_response(record: dict[str, Any]) -> str:
    """What the model is to write: the plan without a last newline (the guide ends a plan at its
    last question mark), or the answer."""
    if "plan" in record:
        return _text(record, "plan").rstrip("\n")
    return _text(record, "answer")


def make_example(
    record: dict[str, Any], tokenizer: Tokenizer, template: ChatTemplate = CHATML
) -> Example:
    response = tokenizer.encode((Segment(record_response(record)),))
    return Example(
        str(record.get("id", "")),
        str(next((record[key] for key in _KINDS if record.get(key)), "all")),
        tuple(tokenizer.encode(record_prompt(record, template))),
        (*response, tokenizer.special.end_id),
    )


def load_examples(
    directories: Sequence[Path],
    split: str,
    tokenizer: Tokenizer,
    *,
    max_tokens: int,
    template: ChatTemplate = CHATML,
) -> tuple[list[Example], int]:
    """All examples of a split of some data sets, and how many were left out as too long.

    Raises ConfigError for a bad file, and when nothing is left.
    """
    examples, num_long = [], 0
    for directory in directories:
        for record in read_records(directory, split):
            example = make_example(record, tokenizer, template)
            if example.num_tokens > max_tokens:
                num_long += 1
            else:
                examples.append(example)
    if not examples:
        names = ", ".join(str(directory) for directory in directories)
        raise ConfigError(
            f"no {split} example of at most {max_tokens} tokens in {names} ({num_long} are longer)"
        )
    return examples, num_long


def data_hashes(directories: Sequence[Path]) -> dict[str, str]:
    """sha256 of each file that is there, by `folder/split.jsonl`."""
    return {
        f"{directory.resolve().name}/{split}.jsonl": hashlib.sha256(path.read_bytes()).hexdigest()
        for directory in directories
        for split in SPLITS
        if (path := directory / f"{split}.jsonl").is_file()
    }


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{record.get('_where', 'record')}: {key} is {value!r}: expected a text")
    return value


def _pairs(record: dict[str, Any], key: str) -> list[tuple[str, str | None]]:
    values = record.get(key, [])
    try:
        return [(value["question"], value["response"]) for value in values]
    except (TypeError, KeyError) as error:
        raise ConfigError(
            f"{record.get('_where', 'record')}: {key} is {values!r}: expected a list of "
            '{"question": ..., "response": ...}'
        ) from error
