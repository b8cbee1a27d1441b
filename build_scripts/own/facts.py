"""A user's facts: read and checked, and made a data set to train an expert on.

A file is JSON lines (.jsonl) or CSV with a header (.csv). Each line has `question` and `answer`,
and may have `wordings`: other ways to ask the same, a list in JSON, in CSV a text with `|` between
them. The last wording of a fact is held out: the adapter is validated on it. A fact without
wordings is validated in a form of its question that training does not show.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compllm.build_scripts.own.examples import (
    MIN_EXAMPLES,
    key_of,
    read_records,
    text_of,
)
from compllm.errors import ConfigError

_SUFFIXES = (".jsonl", ".csv")
_KEYS = frozenset(("question", "answer", "wordings"))
# Forms of a question, so that an adapter answers the question and not its letters.
_TRAINED = ("{}", "{lower}", "{bare}", "Please answer: {}", "Question: {}")
_HELD_OUT = "Can you say {lower}"


@dataclass(frozen=True, slots=True)
class Fact:
    """A question with its answer, and other ways to ask it."""

    question: str
    answer: str
    wordings: tuple[str, ...] = ()

    @property
    def questions(self) -> tuple[str, ...]:
        return (self.question, *self.wordings)


def read_facts(path: Path) -> tuple[Fact, ...]:
    """Raises ConfigError that names the line: of a broken one, and of one that contradicts another.
    A fact that is there twice counts once."""
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f"{path} is neither .jsonl nor .csv: save the facts as one of them")
    facts: list[Fact] = []
    seen: dict[str, tuple[int, str]] = {}  # question -> its line and answer
    for number, record in read_records(path):
        where = f"{path}: line {number}"
        fact = _fact(record, where)
        is_new = key_of(fact.question) not in seen
        for question in fact.questions:
            line, answer = seen.setdefault(key_of(question), (number, fact.answer))
            if key_of(answer) != key_of(fact.answer):
                raise ConfigError(
                    f"{where} contradicts line {line}: {question!r} has the answers {answer!r} and "
                    f"{fact.answer!r}: keep one of them"
                )
        if is_new:
            facts.append(fact)
    if len(facts) < MIN_EXAMPLES:
        raise ConfigError(
            f"{path} has {len(facts)} facts: give at least {MIN_EXAMPLES}; 30 are enough to try"
        )
    return tuple(facts)


def write_dataset(facts: Sequence[Fact], folder: Path) -> str:
    """train.jsonl and validation.jsonl, as train_lora.py reads them; returns a hash of both."""
    digest = hashlib.sha256()
    folder.mkdir(parents=True, exist_ok=True)
    for split, examples in (("train", _train(facts)), ("validation", _validation(facts))):
        lines = (
            {"id": f"{split}-{number}", "kind": "fact", "question": question, "answer": answer}
            for number, (question, answer) in enumerate(examples, 1)
        )
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        digest.update(text.encode())
    return digest.hexdigest()


def questions_of(facts: Sequence[Fact], limit: int = 200) -> tuple[str, ...]:
    """Examples for the router: of each fact its question, then wordings; at most `limit`."""
    texts = [fact.question for fact in facts]
    texts += [wording for fact in facts for wording in fact.wordings]
    unique = list({key_of(text): text for text in reversed(texts)}.values())[::-1]
    step = max(1, -(-len(unique) // limit))
    return tuple(unique[::step])


def _train(facts: Sequence[Fact]) -> Iterator[tuple[str, str]]:
    for fact in facts:
        for text in (fact.question, *fact.wordings[:-1]):
            for form in _TRAINED:
                yield _formed(form, text), fact.answer


def _validation(facts: Sequence[Fact]) -> Iterator[tuple[str, str]]:
    for fact in facts:
        held_out = fact.wordings[-1] if fact.wordings else _formed(_HELD_OUT, fact.question)
        yield held_out, fact.answer


def _formed(form: str, text: str) -> str:
    return form.format(text, lower=text[:1].lower() + text[1:], bare=text.rstrip(" ?.!"))


def _fact(record: dict[str, Any], where: str) -> Fact:
    for key in record:
        if key not in _KEYS:
            raise ConfigError(
                f"{where} has the unknown key {key!r}: known are {', '.join(sorted(_KEYS))}"
            )
    wordings = record.get("wordings") or []
    if isinstance(wordings, str):
        wordings = [part for part in wordings.split("|") if part.strip()]
    if not isinstance(wordings, list):
        raise ConfigError(f"{where}: wordings is {wordings!r}: expected a list of texts")
    return Fact(
        text_of(record, "question", where),
        text_of(record, "answer", where),
        tuple(text_of({"wordings": each}, "wordings", where) for each in wordings),
    )
