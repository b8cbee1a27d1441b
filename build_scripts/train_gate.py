"""Fit the plan-or-answer gate: which questions one expert should answer without a plan.

    python build_scripts/train_gate.py [--requests FILE]

Learns from the generator's sets that make_datasets.py wrote (`generator`, and of `generator-more`
the everyday questions), and from a file of requests of people (`request`, `parallel`) where one is
given. Writes engines/gate.npz: weights fitted on the training
parts, floors for wanted risks from the validation parts. After fetch_base.py and
convert_encoder.py, which `compllm up` runs.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.metadata
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compllm.build_scripts.gating.fit import SHARE_DIRECT, choose_floors, fit
from compllm.build_scripts.gating.questions import Labelled, more_of, read_part
from compllm.build_scripts.staging import run_script, say
from compllm.errors import ConfigError
from compllm.paths import encoder_dir, home_dir
from compllm.plural import counted
from compllm.routing.embed import Encoder, SentenceEncoder, encode_kept
from compllm.routing.gate import Gate, default_gate, save_gate

_MIN_EACH = 20  # questions of either label in either part: fewer prove nothing


async def train(fitted: Sequence[Labelled], held_out: Sequence[Labelled], encoder: Encoder) -> Gate:
    """Raises ConfigError where a label has too few questions."""
    for name, questions in (("training", fitted), ("validation", held_out)):
        for is_direct in (True, False):
            count = sum(question.is_direct == is_direct for question in questions)
            if count < _MIN_EACH:
                found = counted(count, f"{name} question")
                need = "no plan" if is_direct else "a plan"
                raise ConfigError(f"{found} for {need}: at least {_MIN_EACH} are needed")
    head = fit(fitted, await encode_kept(encoder, [question.text for question in fitted]))
    vectors = await encode_kept(encoder, [question.text for question in held_out])
    labels = np.array([question.is_direct for question in held_out])
    return Gate(head, choose_floors(head.scores(vectors)[:, 0], labels), encoder.id)


async def run(arguments: argparse.Namespace) -> None:
    fitted, held_out = (
        read_part(arguments.generator, arguments.requests, part, arguments.seed)
        for part in ("train", "validation")
    )
    num_questions = len(fitted) + len(held_out)
    say(f"embedding {counted(num_questions, 'question')} (kept for the next run)")
    gate = await train(fitted, held_out, await SentenceEncoder.load(encoder_dir()))
    record: dict[str, Any] = {
        "questions": {"train": _counts(fitted), "validation": _counts(held_out)},
        "data": input_hashes(arguments),
        "share_direct": SHARE_DIRECT,
        "seed": arguments.seed,
        "scikit-learn": importlib.metadata.version("scikit-learn"),
    }
    save_gate(arguments.out, Gate(gate.head, gate.floors, gate.encoder, record))
    print(json.dumps({"path": str(arguments.out), "floors": gate.floors, **record}))


def _counts(questions: Sequence[Labelled]) -> dict[str, int]:
    kinds = (f"{each.source}, {'direct' if each.is_direct else 'plan'}" for each in questions)
    return dict(sorted(Counter(kinds).items()))


def input_hashes(arguments: argparse.Namespace) -> dict[str, str]:
    """SHA-256 of each file that was read, for the record next to the artefact."""
    folders = (arguments.generator, more_of(arguments.generator))
    parts = ("train", "validation")
    paths = [folder / f"{part}.jsonl" for folder in folders for part in parts]
    paths += [arguments.requests] if arguments.requests else []
    return {
        f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command; `prog` is its name in the help."""
    parser = argparse.ArgumentParser(prog, description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add(
        "--generator",
        type=Path,
        default=home_dir() / "datasets" / "generator",
        metavar="DIR",
        help="the data set generator of make_datasets.py, with generator-more next to it where it "
        "is there; default: in $COMPLLM_HOME/datasets",
    )
    add(
        "--requests",
        type=Path,
        default=None,
        metavar="FILE",
        help="people's requests too: JSON lines of {'request', 'parallel'}; default: none",
    )
    add(
        "--out",
        type=Path,
        default=None,
        metavar="FILE",
        help="where the gate goes; default: engines/gate.npz",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the split and the fit; default: 0")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    parsed = make_parser(prog).parse_args(arguments)
    parsed.out = parsed.out or default_gate()
    return run_script(lambda: asyncio.run(run(parsed)))


if __name__ == "__main__":
    sys.exit(main())
