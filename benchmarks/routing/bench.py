"""What the parts of `eval_router.py` share: the questions, the encoder, the report."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.report import RESULTS, Report

if TYPE_CHECKING:
    from benchmarks.routing.contestants import Sample
    from compllm.build_scripts.routing.questions import Question
    from compllm.build_scripts.routing.vectors import Space
    from compllm.catalogue import Catalogue
    from compllm.embed import Array, SentenceEncoder
    from compllm.route import Router


@dataclass(frozen=True, slots=True)
class Bench:
    """What the parts share."""

    arguments: argparse.Namespace
    report: Report
    catalogue: Catalogue
    encoder: SentenceEncoder
    subjects: tuple[Question, ...]
    tick: Callable[[str], None]

    @property
    def experts(self) -> tuple[str, ...]:
        return tuple(expert.name for expert in self.catalogue.experts)

    @property
    def folder(self) -> Path:
        from compllm.paths import home_dir

        return home_dir() / "evaluation" / "routing"

    def vectors(self, texts: Sequence[str], space: Space | None = None) -> dict[str, Array]:
        """By text; computed once and kept."""
        from compllm.build_scripts.routing.vectors import kept_vectors, sentence_space

        unique = list(dict.fromkeys(texts))
        space = space or sentence_space(self.encoder)
        rows = kept_vectors(
            space, unique, progress=lambda n, of: self.tick(f"{space.name}: {n}/{of} texts")
        )
        return dict(zip(unique, rows, strict=True))

    def sample(self, questions: Sequence[Question], space: Space | None = None) -> Sample:
        from benchmarks.routing.contestants import Sample

        vectors = self.vectors([question.text for question in questions], space)
        return Sample.of(questions, vectors, self.experts)

    def split(self) -> tuple[Sample, Sample]:
        """(fit, test): halves of the subjects; our own questions and the examples join the fit."""
        from compllm.build_scripts.routing.questions import (
            catalogue_questions,
            halves,
            read_datasets,
            thin_out,
        )

        ours, theirs = halves(self.subjects)
        extra = list(catalogue_questions(self.catalogue))
        if self.arguments.datasets is not None:
            drawn = read_datasets(self.arguments.datasets, self.experts, "train")
            extra += thin_out(drawn, 400, self.arguments.seed)
        return self.sample([*ours, *extra]), self.sample(theirs)


def shipped(bench: Bench) -> dict[str, Router]:
    """The routers that a user has, with their floors."""
    from compllm.route_cli import DEFAULT, EXAMPLES, Chooser
    from compllm.routers.artefact import router_names

    found = {}
    for name in (DEFAULT, *router_names(), EXAMPLES):
        found[name] = asyncio.run(Chooser.open(bench.catalogue, name)).router
    return found


def saves(arguments: argparse.Namespace) -> bool:
    """Quick runs keep away from the results of whole ones."""
    return not (arguments.quick and arguments.out == RESULTS)
