"""The generated questions that the shipped router was fitted on, a share of each topic.

train_router.py writes them beside the head. A project with own experts fits its router on them, too
(own/router.py): the catalogue's examples alone are too few to find the questions of the shipped
experts again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from compllm.build_scripts.routing.questions import (
    GENERATED,
    ORDINARY,
    Question,
    read_questions,
    thin_out,
)
from compllm.paths import resource_dir

FILE = "questions.jsonl"  # in the folder of the heads
_OF_A_TOPIC, _ORDINARY = 200, 1000


def write_taught(folder: Path, questions: Sequence[Question], seed: int) -> Path:
    """The file, with at most 200 questions of a generated topic, and 1,000 for no expert."""
    drawn = [question for question in questions if question.topic.startswith(GENERATED)]
    ordinary = [question for question in drawn if question.topic == ORDINARY]
    others = [question for question in drawn if question.topic != ORDINARY]
    kept = [*thin_out(others, _OF_A_TOPIC, seed), *thin_out(ordinary, _ORDINARY, seed)]
    path, partial = folder / FILE, folder / f".{FILE}"
    lines = (
        json.dumps({"question": q.text, "expert": q.expert, "topic": q.topic}, ensure_ascii=False)
        for q in kept
    )
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return partial.replace(path)


def taught_questions(experts: Sequence[str]) -> tuple[Question, ...]:
    """Those shipped of the named experts, and those for none."""
    path = resource_dir("engines") / "routers" / FILE
    wanted = {*experts, None}
    return tuple(each for each in read_questions(path) if each.expert in wanted)
