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
    from compllm.routing.embed import Array, SentenceEncoder
    from compllm.routing.route import Router


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
        from compllm.build_scripts.routing.questions import catalogue_questions, halves

        ours, theirs = halves(self.subjects)
        extra = (*catalogue_questions(self.catalogue), *self.own_training(400))
        return self.sample([*ours, *extra]), self.sample(theirs)

    def own_training(self, max_each: int) -> list[Question]:
        """Generated one-step questions to fit on, at most `max_each` an expert."""
        from compllm.build_scripts.routing.questions import read_datasets, thin_out

        if self.arguments.datasets is None:
            return []
        drawn = read_datasets(self.arguments.datasets, self.experts, "train")
        return thin_out(drawn, max_each, self.arguments.seed)

    def sub_queries(self, limit: int | None = None) -> list[Question]:
        """Nodes of the composite test sets, each text once, evenly thinned out to `limit`."""
        from compllm.build_scripts.routing.questions import read_composites

        if self.arguments.datasets is None:
            return []
        steps = read_composites(self.arguments.datasets, "test", ("p", "all"))
        unique = list({question.text: question for question in steps}.values())
        return unique[:: -(-len(unique) // limit)] if limit else unique


def shipped(bench: Bench) -> dict[str, Router]:
    """The routers that a user has, with their floors."""
    from compllm.cli.route import DEFAULT, EXAMPLES, Chooser
    from compllm.routing.artefact import router_names

    found = {}
    for name in (DEFAULT, *router_names(), EXAMPLES):
        found[name] = asyncio.run(Chooser.open(bench.catalogue, name)).router
    return found


def saves(arguments: argparse.Namespace) -> bool:
    """Quick runs keep away from the results of whole ones."""
    return not (arguments.quick and arguments.out == RESULTS)
