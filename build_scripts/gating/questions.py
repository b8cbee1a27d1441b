"""Questions with the label that the gate learns: does this need a plan, or will one expert do?

Of the generator's sets a question needs none when its plan is one line (the singles, ordinary
questions, a few of the human decompositions); the sets' own parts are the split, with other
wordings in each. A file of requests (`request`, `parallel`, `source`) says itself whether answering
in parallel parts is worth it; it is split by hash.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compllm.build_scripts.json_lines import read_json_lines
from compllm.build_scripts.routing.questions import MORE

Part = Literal["train", "validation", "test"]
SINGLE = "single"  # the generator's questions of one step
EVERYDAY = "everyday"  # its questions as people ask them, of the folder for further training
REQUESTS = "requests"  # the labelled requests of people
_MAX_EACH: dict[Part, int] = {"train": 500, "validation": 200, "test": 200}
_MAX_EVERYDAY = 1500  # of its questions with a plan: they have the most wordings
_PART_OF_TEN: tuple[Part, ...] = ("train",) * 6 + ("validation",) * 2 + ("test",) * 2


@dataclass(frozen=True, slots=True)
class Labelled:
    """A question, whether one expert alone should answer it, and the set it comes from."""

    text: str
    is_direct: bool
    source: str


def read_part(
    generator: Path, requests: Path | None, part: Part, seed: int = 0
) -> tuple[Labelled, ...]:
    """All singles, everyday questions without a plan and requests of a part, a sample of each other
    source; no text twice. Everyday questions come from the folder `generator`-more, where it is
    there. Raises ConfigError naming file and line."""
    by_source: dict[str, list[Labelled]] = {}
    generated = (*_generated(generator, part), *_everyday(generator, part))
    for question in (*generated, *_requested(requests, part)):
        by_source.setdefault(question.source, []).append(question)
    rng = random.Random(seed)
    found: dict[str, Labelled] = {}
    for source in sorted(by_source):
        questions = by_source[source]
        kept = [each for each in questions if _is_kept(each)]
        others = [each for each in questions if not _is_kept(each)]
        limit = _MAX_EVERYDAY if source == EVERYDAY else _MAX_EACH[part]
        if len(others) > limit:
            others = rng.sample(others, limit)
        found |= {question.text: question for question in (*kept, *others)}
    return tuple(found.values())


def _is_kept(question: Labelled) -> bool:
    is_ordinary = question.source == EVERYDAY and question.is_direct
    return is_ordinary or question.source in (SINGLE, REQUESTS)


def more_of(generator: Path) -> Path:
    """The folder of the generator's further training."""
    folder = generator.absolute()  # "." has no name
    return folder.with_name(f"{folder.name}{MORE}")


def _generated(folder: Path, part: Part) -> Iterator[Labelled]:
    for _, record in read_json_lines(folder / f"{part}.jsonl", ("question", "plan", "source")):
        is_direct = len(record["plan"].splitlines()) == 1
        yield Labelled(record["question"], is_direct, record["source"])


def _everyday(folder: Path, part: Part) -> Iterator[Labelled]:
    """Of the further training alone what the set itself does not have."""
    more = more_of(folder)
    if (more / f"{part}.jsonl").is_file():
        yield from (each for each in _generated(more, part) if each.source == EVERYDAY)


def _requested(path: Path | None, part: Part) -> Iterator[Labelled]:
    if path is None:
        return
    for _, record in read_json_lines(path, ("request", "parallel")):
        place = hashlib.sha256(record["request"].encode("utf-8", "replace")).digest()[0] % 10
        if _PART_OF_TEN[place] == part:
            yield Labelled(record["request"], not record["parallel"], REQUESTS)
