"""Human decompositions, given by path, as plans: StrategyQA and Break in one JSON Lines shape.

A record is {"id", "question", "steps", "parents"} with 0-based parents; `#k` in a step names line
k, as in a plan. Steps stay as people wrote them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compllm.build_scripts.datasets.generators import plan_text
from compllm.build_scripts.datasets.kinds import SPLITS, Split, pick_split
from compllm.errors import ConfigError, PlanError
from compllm.prompts import one_line

MAX_NODES = 12
MAX_QUESTION_CHARS = 400
MAX_PLAN_CHARS = 600


@dataclass
class HumanSet:
    """What one file gave."""

    splits: dict[Split, list[dict[str, Any]]] = field(
        default_factory=lambda: {split: [] for split in SPLITS}
    )
    num_dropped: int = 0  # too long, or no plan
    num_repeated: int = 0  # the question was there before: another split may hold it
    num_over_cap: int = 0  # left out of train


def read_human(path: Path, source: str, max_train: int | None = None) -> HumanSet:
    """Plans of one file, 10 % validation and 10 % test by a hash of the id.

    max_train keeps as many of train, chosen by hash. Raises ConfigError.
    """
    found, seen = HumanSet(), set[str]()
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            name, question = str(record["id"]), one_line(record["question"])
            steps = [one_line(step) for step in record["steps"]]
            parents = [sorted(set(above)) for above in record["parents"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path}, line {number}: not a decomposition ({type(error).__name__}: {error}): "
                'expected {"id", "question", "steps", "parents"}'
            ) from error
        if question.casefold() in seen:
            found.num_repeated += 1
            continue
        plan = _plan(question, steps, parents)
        if plan is None:
            found.num_dropped += 1
            continue
        seen.add(question.casefold())
        found.splits[pick_split(name, 0.1, 0.1)].append(
            {"id": f"generator-{name}", "source": source, "question": question, "plan": plan}
        )
    train = found.splits["train"]
    if max_train is not None and len(train) > max_train:
        found.num_over_cap = len(train) - max_train
        train.sort(key=lambda each: hashlib.sha256(each["id"].encode()).digest())
        del train[max_train:]
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the decompositions in {path}: {error}") from error


def _plan(question: str, steps: list[str], parents: list[list[int]]) -> str | None:
    if len(steps) != len(parents) or len(steps) > MAX_NODES or len(question) > MAX_QUESTION_CHARS:
        return None
    try:
        plan = plan_text(steps, parents)
    except (PlanError, TypeError):
        return None
    return plan if len(plan) <= MAX_PLAN_CHARS else None
