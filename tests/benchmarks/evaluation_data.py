"""A hand-made data set in the layout of make_datasets.py, for the tests of the evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

ELEMENTS = {"iron": 26, "neon": 10, "carbon": 6, "oxygen": 8, "helium": 2, "sodium": 11}
LEGS = {"ant": 6, "spider": 8, "dog": 4, "crab": 10, "bird": 2, "squid": 10}


def independent(element: str, animal: str) -> dict[str, Any]:
    """Of the -P shape: two leaves of two domains."""
    return {
        "id": f"p-{element}-{animal}",
        "set": "p",
        "question": f"What is the atomic number of {element}, and how many legs has a {animal}?",
        "steps": [f"What is the atomic number of {element}?", f"How many legs has a {animal}?"],
        "parents": [[], []],
        "experts": ["chemistry", "biology"],
        "kinds": ["atomic_number", "legs"],
        "answers": [str(ELEMENTS[element]), str(LEGS[animal])],
        "answer": f"{ELEMENTS[element]}; {LEGS[animal]}",
    }


def dependent(element: str, animal: str) -> dict[str, Any]:
    """Of the -All shape: their sum."""
    total = str(ELEMENTS[element] + LEGS[animal])
    asked = f"What is the atomic number of {element} plus the number of legs of a {animal}?"
    record = independent(element, animal)
    return record | {
        "id": f"all-{element}-{animal}",
        "set": "all",
        "question": asked,
        "steps": [*record["steps"], "What is #1 plus #2?"],
        "parents": [[], [], [0, 1]],
        "experts": ["chemistry", "biology", "mathematics"],
        "kinds": ["atomic_number", "legs", "sum"],
        "answers": [*record["answers"], total],
        "answer": total,
    }


def write_datasets(folder: Path) -> Path:
    """All files of a test split, and the training splits that examples are taken from."""
    pairs = list(zip(ELEMENTS, LEGS, strict=True))
    for name, build in (("p", independent), ("all", dependent)):
        records = [build(*pair) for pair in pairs]
        _write(folder / name / "test.jsonl", records[:3])
        _write(folder / name / "train.jsonl", records[3:])
    plans = [
        {
            "id": "human-1",
            "source": "strategyqa",
            "question": "Is an ant heavier than a dog?",
            "plan": "1 | How heavy is an ant?\n2 | How heavy is a dog?\n3 <1,2> | Is #1 more?\n",
        },
        {
            "id": "human-2",
            "source": "break",
            "question": "How many legs does the heavier animal have?",
            "plan": "1 | heavier animal\n2 <1> | number of legs of #1\n",
        },
        {
            "id": "single-1",
            "source": "single",
            "question": "Who wrote Hamlet?",
            "plan": "1 | Who wrote Hamlet?",
        },
    ]
    _write(folder / "generator" / "test.jsonl", plans)
    for domain, question, answer in (
        ("chemistry", "What is the atomic number of iron?", "26"),
        ("biology", "How many legs has a spider?", "8"),
        ("mathematics", "What is #1 plus #2?", "34"),
    ):
        facts = [
            {"question": "What is the atomic number of iron?", "response": "26"},
            {"question": "How many legs has a spider?", "response": "8"},
        ]
        item = {
            "id": f"{domain}-1",
            "domain": domain,
            "kind": f"{domain}_kind",
            "wording": "w1",
            "question": question,
            "parents": facts if domain == "mathematics" else [],
            "answer": answer,
        }
        _write(folder / domain / "test.jsonl", [item])
    both = {"id": "agg-1", "question": "Iron, and a spider?", "facts": facts, "answer": "26; 8"}
    _write(folder / "aggregator" / "test.jsonl", [both])
    return folder


def _write(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
