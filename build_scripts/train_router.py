"""Fit the expert router on labelled questions and choose its floor.

    python build_scripts/train_router.py --subjects FILE [--datasets DIR] [--questions FILE]

Writes engines/routers/NAME.npz for each of --routers: `logistic` (the default of the catalogue) and
`similarity`; `neighbours`, `means`, `logistic-experts` and `logistic-topics` are there to compare.
A share of the generated questions goes beside them, for the routers of projects (own/router.py).
The floor is the loosest that keeps --risk on questions that the head was not fitted on. After
fetch_base.py and convert_encoder.py, which `compllm up` runs; needs the extra `router`.
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
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from compllm.build_scripts.routing.fit import FITS, out_of_fold
from compllm.build_scripts.routing.questions import (
    MORE,
    Question,
    catalogue_questions,
    read_datasets,
    read_ordinary,
    read_questions,
    read_subjects,
    thin_out,
)
from compllm.build_scripts.routing.taught import write_taught
from compllm.build_scripts.routing.thresholds import choose_floor
from compllm.build_scripts.routing.vectors import kept_vectors, sentence_space
from compllm.build_scripts.staging import run_script, say
from compllm.catalogue import Catalogue, load_catalogue
from compllm.errors import ConfigError
from compllm.paths import encoder_dir, home_dir, resource_dir
from compllm.plural import counted
from compllm.routing.artefact import Artefact, save
from compllm.routing.embed import Array, SentenceEncoder

SHIPPED = ("logistic", "similarity")
MAX_ORDINARY = 1300  # generated questions for no expert
_MIN_EACH = 10  # questions of an expert, and for none: fewer prove nothing


def gather(arguments: argparse.Namespace, catalogue: Catalogue) -> list[Question]:
    """All questions to fit on. Raises ConfigError when an expert has too few."""
    experts = [expert.name for expert in catalogue.experts]
    found: list[Question] = list(catalogue_questions(catalogue))
    for path in arguments.subjects:
        found += read_subjects(path)
    for path in arguments.questions:
        found += read_questions(path)
    if arguments.datasets is not None:
        drawn = read_datasets(arguments.datasets, experts, "train")
        found += thin_out(drawn, arguments.max_each, arguments.seed)
        ordinary = read_ordinary(arguments.datasets, "train")
        found += thin_out(ordinary, MAX_ORDINARY, arguments.seed)
    strangers = {question.expert for question in found} - {*experts, None}
    if strangers:
        raise ConfigError(
            f"questions for {', '.join(sorted(map(str, strangers)))}: the catalogue "
            f"{catalogue.path} has the experts {', '.join(experts)}"
        )
    counts = Counter(question.expert for question in found)
    for name in (*experts, None):
        if counts[name] < _MIN_EACH:
            raise ConfigError(
                f"{counted(counts[name], 'question')} for {name or 'no expert'}: at least "
                f"{_MIN_EACH} are needed, give more with --subjects, --datasets or --questions"
            )
    return found


def train(
    name: str, questions: Sequence[Question], vectors: Array, experts: tuple[str, ...], risk: float
) -> tuple[Any, dict[str, Any]]:
    """The head fitted on everything, and its floor from scores of heads that were fitted without
    the question they score."""
    labels = np.array([experts.index(q.expert) if q.expert else -1 for q in questions])
    topics = np.array([question.topic for question in questions])
    texts = [question.text for question in questions]
    scores = out_of_fold(FITS[name], vectors, labels, topics, experts, groups=texts)
    choice = choose_floor(scores, labels, risk)
    return FITS[name](vectors, labels, topics, experts), asdict(choice)


def run(arguments: argparse.Namespace) -> None:
    catalogue = load_catalogue(arguments.catalogue)
    experts = tuple(expert.name for expert in catalogue.experts)
    questions = gather(arguments, catalogue)
    encoder = asyncio.run(SentenceEncoder.load(encoder_dir()))
    say(f"embedding {counted(len(questions), 'question')} (kept for the next run)")
    vectors = kept_vectors(
        sentence_space(encoder),
        [question.text for question in questions],
        progress=lambda done, total: say(f"  {done} of {total}"),
    )
    for name in arguments.routers:
        say(f"fitting {name}")
        head, choice = train(name, questions, vectors, experts, arguments.risk)
        record = {
            "router": name,
            "risk": arguments.risk,
            "choice": choice,
            "questions": dict(Counter(q.expert or "none" for q in questions)),
            "data": input_hashes(arguments, experts),
            "seed": arguments.seed,
            "scikit-learn": importlib.metadata.version("scikit-learn"),
        }
        path = arguments.out / f"{name}.npz"
        save(path, Artefact(head, choice["floor"], encoder.id, record))
        print(json.dumps({"path": str(path), **record}))
    if arguments.datasets is not None:
        write_taught(arguments.out, questions, arguments.seed)


def input_hashes(arguments: argparse.Namespace, experts: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each file that was read, for the record next to the artefact."""
    paths = [*arguments.subjects, *arguments.questions]
    if arguments.datasets is not None:
        sets = (*experts, *(f"{name}{MORE}" for name in experts), "ordinary")
        paths += [arguments.datasets / name / "train.jsonl" for name in sets]
    return {
        f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
        if path.is_file()
    }


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command; `prog` is its name in the help."""
    parser = argparse.ArgumentParser(prog, description=(__doc__ or "").partition("\n")[0])
    _add_questions(parser)
    _add_fit(parser)
    return parser


def _add_questions(parser: argparse.ArgumentParser) -> None:
    """What the routers are fitted on."""
    add = parser.add_argument
    add(
        "--subjects",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="JSON lines of {'question', 'subject'}; a subject stands for an expert or for none",
    )
    add(
        "--questions",
        type=Path,
        nargs="*",
        default=[],
        metavar="FILE",
        help="JSON lines of {'question', 'expert'}",
    )
    default = home_dir() / "datasets"
    add(
        "--datasets",
        type=Path,
        default=default if default.is_dir() else None,
        metavar="DIR",
        help="the experts' data sets of make_datasets.py, and its ordinary questions for no "
        "expert; default: in $COMPLLM_HOME, where there are any",
    )
    add(
        "--max-each",
        type=int,
        default=400,
        metavar="N",
        help=f"questions of an expert's data set at most ({MAX_ORDINARY} of the ordinary ones); "
        "default: 400",
    )
    add(
        "--catalogue",
        type=Path,
        default=None,
        metavar="FILE",
        help="experts.toml of the experts; default: the one shipped",
    )


def _add_fit(parser: argparse.ArgumentParser) -> None:
    """Which routers, how, and where they go."""
    add = parser.add_argument
    add(
        "--routers",
        nargs="*",
        choices=list(FITS),
        default=list(SHIPPED),
        metavar="NAME",
        help=f"kinds of routers to fit, of {', '.join(FITS)}; default: {' '.join(SHIPPED)}",
    )
    add(
        "--risk",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="wanted share of wrong routes among those to an expert, 0 to 1; default: 0.1",
    )
    add(
        "--out",
        type=Path,
        default=None,
        metavar="DIR",
        help="where the routers go, NAME.npz; default: engines/routers",
    )
    add("--seed", type=int, default=0, metavar="N", help="of the split and the fit; default: 0")


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    parsed = make_parser(prog).parse_args(arguments)
    parsed.out = parsed.out or resource_dir("engines") / "routers"
    return run_script(lambda: run(parsed))


if __name__ == "__main__":
    sys.exit(main())
