"""A tiny data set and ways to train on it, for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compllm.build_scripts.training.settings import TrainSettings

SETTINGS = TrainSettings(
    learning_rate=2e-2, rank=4, batch_size=8, epochs=3, num_evaluations=2, warmup_steps=2
)
ELEMENTS = ("hydrogen", "helium", "lithium", "carbon", "oxygen", "neon", "iron", "gold")
WORDINGS = ("What is the number of {}?", "Which number has {}?", "Give the number of {}.")


def facts(wording: int) -> list[dict[str, Any]]:
    return [
        {
            "id": f"number-{wording}-{place}",
            "domain": "chemistry",
            "kind": "odd" if place % 2 else "even",
            "wording": wording,
            "question": WORDINGS[wording].format(name),
            "parents": [],
            "answer": str(place),
        }
        for place, name in enumerate(ELEMENTS, 1)
    ]


PLAN = {
    "id": "plan-1",
    "source": "ours",
    "question": "What is the number of iron plus the number of gold?",
    "plan": "1 | What is the number of iron?\n2 | What is the number of gold?\n"
    "3 <1,2> | What is #1 plus #2?\n",
}
SUMMARY = {
    "id": "summary-1",
    "question": "What are the numbers of iron and gold?",
    "facts": [
        {"question": "What is the number of iron?", "response": "7"},
        {"question": "What is the number of gold?", "response": "8"},
    ],
    "answer": "7; 8",
}
CHILD = {
    "id": "child-1",
    "kind": "sum",
    "question": "What is #1 plus #2?",
    "parents": [
        {"question": "What is the number of iron?", "response": "7"},
        {"question": "What is the number of gold?", "response": None},
    ],
    "answer": "15",
}

COMPOSITE = {
    "id": "all-1",
    "set": "all",
    "question": "What is the number of iron plus the number of gold?",
    "steps": ["What is the number of iron?", "What is the number of gold?", "What is #1 plus #2?"],
    "parents": [[], [], [0, 1]],
    "answer": "15",
}


def write_dataset(directory: Path, **splits: list[dict[str, Any]]) -> Path:
    """`directory` with a file of each split; train and validation wordings where none is given."""
    directory.mkdir(parents=True, exist_ok=True)
    chosen = {"train": facts(0) + facts(1), "validation": facts(2), **splits}
    for split, records in chosen.items():
        text = "".join(json.dumps(record) + "\n" for record in records)
        (directory / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return directory
