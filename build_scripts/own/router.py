"""The router of a project: fitted again over all experts' examples and the questions for none.

Where the project has shipped experts, the generated questions that they are shipped with join the
fit. The shipped questions for no expert join it, too, except those near an own expert's examples.

`refit` gives the head and what it changes: which questions are routed elsewhere than before, and
for which of them that is worse. The table is out of fold: each question is routed by a head that
was fitted without it. scikit-learn fits (`routing/fit.py`), the floor is that of `train_router.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compllm.build_scripts.own.project import SHIPPED_HEAD
from compllm.build_scripts.routing.fit import FITS, out_of_fold
from compllm.build_scripts.routing.questions import Question, catalogue_questions
from compllm.build_scripts.routing.taught import taught_questions
from compllm.build_scripts.routing.thresholds import choose_floor
from compllm.build_scripts.routing.vectors import kept_vectors, sentence_space
from compllm.catalogue import Catalogue, load_catalogue, shipped_catalogue_path
from compllm.errors import ConfigError, RouteError
from compllm.routing.artefact import Artefact, save
from compllm.routing.embed import Array, SentenceEncoder
from compllm.routing.route import Router

NONE = "none"  # in tables: no expert, the base answers
_KIND = "logistic"
_RISK = 0.1  # wanted share of wrong routes among those to an expert
_MIN_OUTSIDE = 10  # questions for no expert
_NEAR = 0.6  # cosine: a shipped question for no expert may belong to an own one


@dataclass(frozen=True, slots=True)
class Moved:
    """A question that is routed elsewhere than before."""

    question: str
    owner: str  # the expert it belongs to, or NONE
    before: str
    after: str

    @property
    def is_worse(self) -> bool:
        return self.before == self.owner


@dataclass(frozen=True, slots=True)
class Refit:
    """A router for some experts, not written yet."""

    artefact: Artefact | None  # None: there is nothing to fit, or it is the one shipped
    is_shipped: bool
    names: tuple[str, ...]  # experts, then NONE
    confusion: npt.NDArray[np.int64]  # [owner, routed to], questions; empty where nothing is fitted
    moved: tuple[Moved, ...]

    @property
    def worse(self) -> tuple[Moved, ...]:
        return tuple(each for each in self.moved if each.is_worse)

    def write(self, folder: Path) -> str | None:
        """The head's path for the catalogue, with the file written into `folder`; None: there is
        no head. The name follows from the content, so that a running server keeps its own."""
        if self.is_shipped:
            return SHIPPED_HEAD
        if self.artefact is None:
            return None
        partial = folder / ".router.npz"
        save(partial, self.artefact)
        name = f"router-{hashlib.sha256(partial.read_bytes()).hexdigest()[:8]}.npz"
        partial.replace(folder / name)
        return name


def refit(before: Catalogue, after: Catalogue, encoder: SentenceEncoder) -> Refit:
    """The router of `after`, compared with that of `before` on the questions that both have.

    Raises ConfigError where there are too few questions, or for another encoder's catalogue.
    """
    if encoder.id != after.router.encoder:
        raise ConfigError(
            f"{after.path} names the encoder {after.router.encoder}, the one here is {encoder.id}: "
            f'set encoder = "{encoder.id}" under [catalogue.router]'
        )
    experts = tuple(expert.name for expert in after.experts)
    names = (*experts, NONE)
    questions = catalogue_questions(after)
    texts = [question.text for question in questions]
    vectors = kept_vectors(sentence_space(encoder), texts)
    owners = [question.expert or NONE for question in questions]
    is_shipped = _is_shipped(after)
    artefact, confusion = None, np.zeros((0, 0), np.int64)
    routes = [NONE] * len(texts)
    if is_shipped:
        shipped = load_catalogue(shipped_catalogue_path())
        routes = _routes(asyncio.run(Router.build(shipped, encoder)), vectors)
    elif experts:
        _check_outside(after)
        artefact, scores = _fit([*questions, *_taught(after, encoder)], encoder, experts)
        confusion = _confusion(owners, _named(scores[: len(texts)], artefact.floor, experts), names)
        routes = _named(artefact.head.scores(vectors), artefact.floor, experts)
    moved = _moved(before, encoder, texts, vectors, owners, routes)
    return Refit(artefact, is_shipped, names, confusion, moved)


def _fit(
    questions: Sequence[Question], encoder: SentenceEncoder, experts: tuple[str, ...]
) -> tuple[Artefact, Array]:
    """The router, and the scores of each question by a head that was fitted without it."""
    texts = [question.text for question in questions]
    vectors = kept_vectors(sentence_space(encoder), texts)
    labels = np.array([experts.index(q.expert) if q.expert else -1 for q in questions])
    topics = np.array([question.topic for question in questions])
    scores = out_of_fold(FITS[_KIND], vectors, labels, topics, experts, groups=texts)
    record = {"router": _KIND, "questions": len(texts), "risk": _RISK}
    head = FITS[_KIND](vectors, labels, topics, experts)
    floor = choose_floor(scores, labels, _RISK).floor
    return Artefact(head, floor, encoder.id, record), scores


def _taught(catalogue: Catalogue, encoder: SentenceEncoder) -> list[Question]:
    """What the shipped router was fitted on, for the shipped experts that the catalogue has."""
    shipped = dict(_examples(load_catalogue(shipped_catalogue_path())))
    own: list[str] = []
    there = []
    for name, texts in _examples(catalogue):
        if shipped.get(name) == texts:
            there.append(name)
        else:
            own += texts
    if not there:
        return []
    taught = taught_questions(there)
    if not own:
        return list(taught)
    space = sentence_space(encoder)
    near = kept_vectors(space, [each.text for each in taught]) @ kept_vectors(space, own).T
    return [
        question
        for question, cosine in zip(taught, near.max(axis=1), strict=True)
        if question.expert or cosine < _NEAR
    ]


def _check_outside(catalogue: Catalogue) -> None:
    if (num_outside := len(catalogue.out_of_domain)) < _MIN_OUTSIDE:
        raise ConfigError(
            f"{catalogue.path} has {num_outside} questions in out_of_domain: the router needs at "
            f"least {_MIN_OUTSIDE} to learn what belongs to no expert"
        )


def _moved(
    before: Catalogue,
    encoder: SentenceEncoder,
    texts: Sequence[str],
    vectors: Array,
    owners: Sequence[str],
    routes: Sequence[str],
) -> tuple[Moved, ...]:
    """Of the questions of experts that were there before, and of those for none."""
    try:
        old = _routes(asyncio.run(Router.build(before, encoder)), vectors)
    except (ConfigError, RouteError) as error:
        raise ConfigError(f"the router of {before.path} cannot be compared: {error}") from error
    there = {NONE, *(expert.name for expert in before.experts)}
    return tuple(
        Moved(text, owner, was, now)
        for text, owner, was, now in zip(texts, owners, old, routes, strict=True)
        if owner in there and was != now
    )


def _routes(router: Router, vectors: Array) -> list[str]:
    return [NONE if route.is_fallback else route.expert for route in router.route(vectors)]


def _named(scores: Array, floor: float, experts: Sequence[str]) -> list[str]:
    best = scores.argmax(axis=1)
    return [
        experts[place] if score >= floor else NONE
        for place, score in zip(best, scores.max(axis=1), strict=True)
    ]


def _confusion(
    owners: Sequence[str], routes: Sequence[str], names: Sequence[str]
) -> npt.NDArray[np.int64]:
    counts = np.zeros((len(names), len(names)), np.int64)
    for owner, route in zip(owners, routes, strict=True):
        counts[names.index(owner), names.index(route)] += 1
    return counts


def _is_shipped(catalogue: Catalogue) -> bool:
    """Whether these experts with their questions are those of the shipped router."""
    shipped = load_catalogue(shipped_catalogue_path())
    is_same = _examples(catalogue) == _examples(shipped)
    return is_same and catalogue.router.encoder == shipped.router.encoder


def _examples(catalogue: Catalogue) -> list[tuple[str, tuple[str, ...]]]:
    pairs = zip(catalogue.experts, catalogue.examples, strict=True)
    return [(expert.name, texts) for expert, texts in pairs]
