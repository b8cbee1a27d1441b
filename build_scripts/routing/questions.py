"""Labelled questions for the router: which expert is right for each, or none; and on which topic.

Three kinds of files, all JSON lines given by path. A subject file (`question`, `subject`) labels by
SUBJECTS, every other subject is for no expert. A question file names the expert itself. The data
sets of `make_datasets.py` hold a folder for each domain. The catalogue's own examples join them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compllm.build_scripts.json_lines import read_json_lines
from compllm.catalogue import Catalogue
from compllm.errors import ConfigError

# Expert of each subject of the public subject file that is an expert's own.
SUBJECTS: Mapping[str, str] = {
    "college_chemistry": "chemistry",
    "high_school_chemistry": "chemistry",
    "college_biology": "biology",
    "high_school_biology": "biology",
    "abstract_algebra": "mathematics",
    "college_mathematics": "mathematics",
    "elementary_mathematics": "mathematics",
    "high_school_mathematics": "mathematics",
}

# Subjects that use the experts' knowledge, or mix all subjects: no expert's own, yet not clearly
# different. Accepting such a question is no plain mistake, so figures are given with and without.
NEAR_SUBJECTS = frozenset(
    (
        "anatomy",
        "astronomy",
        "clinical_knowledge",
        "college_computer_science",
        "college_medicine",
        "college_physics",
        "computer_security",
        "conceptual_physics",
        "econometrics",
        "electrical_engineering",
        "formal_logic",
        "global_facts",
        "high_school_computer_science",
        "high_school_physics",
        "high_school_statistics",
        "human_aging",
        "human_sexuality",
        "machine_learning",
        "medical_genetics",
        "miscellaneous",
        "nutrition",
        "prehistory",
        "professional_medicine",
        "virology",
    )
)


GENERATED = "set-"  # what topics of generated questions begin with
ORDINARY = f"{GENERATED}ordinary"  # topic of the generated questions for no expert
UNKNOWN_KIND = "unknown"  # kind of a question to which the expert answers "I do not know"
UNKNOWN_KINDS = frozenset((UNKNOWN_KIND, "no_codon"))
_OWN_TOPICS = frozenset(  # kinds, or how they begin
    ("line", "line_names", "asked", "is_so", "fact", "heavy")
)
MORE = "-more"  # end of the folder of a set's further training


@dataclass(frozen=True, slots=True)
class Question:
    """A question and where it belongs."""

    text: str
    expert: str | None  # None: the base should answer
    topic: str  # finer than the expert: a subject, or the set it comes from


def read_subjects(path: Path, subjects: Mapping[str, str] = SUBJECTS) -> tuple[Question, ...]:
    """A subject file. Raises ConfigError naming file and line."""
    return tuple(
        Question(record["question"], subjects.get(record["subject"]), record["subject"])
        for record in _records(path, ("question", "subject"))
    )


def read_questions(path: Path) -> tuple[Question, ...]:
    """Lines of `question` and `expert` (null: none), with a finer `topic` where there is one.
    Raises ConfigError."""
    return tuple(
        Question(
            record["question"],
            record["expert"],
            record.get("topic") or f"given-{record['expert'] or 'none'}",
        )
        for record in _records(path, ("question", "expert"))
    )


def read_datasets(folder: Path, experts: Sequence[str], split: str) -> tuple[Question, ...]:
    """The one-step questions of every expert that the folder has sets for: NAME and NAME-more,
    without those that the expert does not know. Lines of plans are topics of their own. Raises
    ConfigError."""
    return tuple(
        Question(record["question"], name, f"{GENERATED}{name}{more}{_family(record)}")
        for name in experts
        for more in ("", MORE)
        if (path := folder / f"{name}{more}" / f"{split}.jsonl").is_file()
        for record in _records(path, ("question",))
        if record.get("kind") not in UNKNOWN_KINDS
    )


def _family(record: Mapping[str, Any]) -> str:
    """ "-line_names" of a kind that would be too rare among all lines, "-line" and "-asked" of the
    others."""
    kind = str(record.get("kind", ""))
    family, _, _ = kind.partition("_")
    if kind in _OWN_TOPICS:
        return f"-{kind}"
    return f"-{family}" if family in _OWN_TOPICS else ""


def read_ordinary(folder: Path, split: str) -> tuple[Question, ...]:
    """The generated questions for no expert, where the folder has them. Raises ConfigError."""
    path = folder / "ordinary" / f"{split}.jsonl"
    return read_questions(path) if path.is_file() else ()


def read_composites(folder: Path, split: str, sets: Sequence[str]) -> tuple[Question, ...]:
    """Every node of the gold plans of composite sets, with the expert it belongs to. Raises
    ConfigError."""
    found = []
    for name in sets:
        path = folder / name / f"{split}.jsonl"
        for record in _records(path, ("steps", "experts")) if path.is_file() else ():
            for step, expert in zip(record["steps"], record["experts"], strict=True):
                found.append(Question(step, expert, f"{name}-{expert}"))
    return tuple(found)


def catalogue_questions(catalogue: Catalogue) -> tuple[Question, ...]:
    """The catalogue's examples, and its questions for no expert."""
    own = [
        Question(text, expert.name, f"example-{expert.name}")
        for expert, texts in zip(catalogue.experts, catalogue.examples, strict=True)
        for text in texts
    ]
    return (*own, *(Question(text, None, "example-none") for text in catalogue.out_of_domain))


def halves(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """Every second question of each topic, in the order of the file: fit on one, test on the
    other. Equal texts stay on one side."""
    sides: tuple[list[Question], list[Question]] = ([], [])
    num_seen: dict[str, int] = {}
    side_of: dict[str, int] = {}
    for question in questions:
        count = num_seen.get(question.topic, 0)
        num_seen[question.topic] = count + 1
        sides[side_of.setdefault(question.text, count % 2)].append(question)
    return sides


def first_of_each(questions: Iterable[Question], limit: int) -> list[Question]:
    """The first `limit` of each topic, in the order of the file."""
    num_seen: dict[str, int] = {}
    kept = []
    for question in questions:
        num_seen[question.topic] = num_seen.get(question.topic, 0) + 1
        if num_seen[question.topic] <= limit:
            kept.append(question)
    return kept


def thin_out(questions: Iterable[Question], limit: int, seed: int) -> list[Question]:
    """At most `limit` of each topic, drawn without the same text twice: thousands of generated
    questions must not outweigh people's."""
    by_topic: dict[str, dict[str, Question]] = {}
    for question in questions:
        by_topic.setdefault(question.topic, {})[question.text] = question
    rng = random.Random(seed)
    kept: list[Question] = []
    for topic in by_topic.values():
        mine = list(topic.values())
        kept += mine if len(mine) <= limit else rng.sample(mine, limit)
    return kept


def _records(path: Path, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    for number, record in read_json_lines(path, keys):
        if not isinstance(text := record.get("question", ""), str):
            raise ConfigError(f"{path}: line {number}: the question is {text!r}, expected text")
        yield record
