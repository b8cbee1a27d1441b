"""The refitted router: which questions move, and what is worse, with an encoder without a model."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compllm.build_scripts.own.project import SHIPPED_HEAD, make_project
from compllm.build_scripts.own.router import NONE, refit
from compllm.catalogue import Catalogue, load_catalogue
from compllm.errors import ConfigError
from compllm.routing.artefact import load
from compllm.routing.embed import SentenceEncoder
from compllm.routing.route import Router
from compllm.testing import HashingEncoder
from compllm.types import Expert

ENCODER: Any = HashingEncoder()
OUTSIDE = tuple(f"{word} music painting river" for word in "abcdefghijkl")
LAW = tuple(f"tort contract court {word}" for word in "abcdefgh")
COOKING = tuple(f"flour oven bread {word}" for word in "abcdefgh")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path / "home"))


def catalogue(tmp_path: Path, **experts: tuple[str, ...]) -> Catalogue:
    path = tmp_path / "compllm.toml"
    if not path.exists():
        make_project(tmp_path, ENCODER.id, "chatml", has_shipped=False)
    return replace(
        load_catalogue(path),
        experts=tuple(Expert(name, name, "") for name in experts),
        examples=tuple(experts.values()),
        out_of_domain=OUTSIDE,
    )


def test_experts_that_differ_are_told_apart_and_the_head_is_written(tmp_path: Path) -> None:
    before, after = catalogue(tmp_path), catalogue(tmp_path, law=LAW, cooking=COOKING)
    found = refit(before, after, ENCODER)
    assert found.names == ("law", "cooking", NONE)
    assert found.confusion.trace() == found.confusion.sum() == len((*LAW, *COOKING, *OUTSIDE))
    assert found.moved == ()
    name = found.write(tmp_path)
    assert name is not None
    artefact = load(tmp_path / name)
    assert (artefact.encoder, artefact.head.experts) == (ENCODER.id, ("law", "cooking"))
    assert found.write(tmp_path) == name
    assert [each.name for each in tmp_path.glob("*router*")] == [name]


def test_questions_that_a_new_expert_takes_from_another_are_worse(tmp_path: Path) -> None:
    before = catalogue(tmp_path, law=LAW)
    head = refit(catalogue(tmp_path), before, ENCODER).write(tmp_path)
    before = replace(before, router=replace(before.router, head=tmp_path / str(head)))
    # Its questions have the words of the other's.
    thief = tuple(f"{text} {text}" for text in LAW for _ in range(3))
    found = refit(before, catalogue(tmp_path, law=LAW, thief=thief), ENCODER)
    assert found.worse
    assert {(each.owner, each.before) for each in found.worse} == {("law", "law")}


def test_a_question_that_moves_to_its_owner_is_not_worse(tmp_path: Path) -> None:
    unknown = replace(catalogue(tmp_path, law=LAW), router=catalogue(tmp_path).router)
    strict = replace(unknown, router=replace(unknown.router, threshold=1.0))
    found = refit(replace(strict, examples=(("nothing like it",),)), unknown, ENCODER)
    assert {(each.before, each.after) for each in found.moved} == {(NONE, "law")}
    assert found.worse == ()


def test_the_shipped_experts_alone_keep_the_shipped_router(encoder_dir: Path) -> None:
    shipped = load_catalogue()
    encoder = asyncio.run(SentenceEncoder.load(encoder_dir))
    found = refit(shipped, shipped, encoder)
    assert found.is_shipped
    assert found.moved == ()
    assert found.write(Path("/nowhere")) == SHIPPED_HEAD


def test_a_project_without_experts_has_no_head(tmp_path: Path) -> None:
    found = refit(catalogue(tmp_path, law=LAW), catalogue(tmp_path), ENCODER)
    assert found.write(tmp_path) is None
    assert not np.any(found.confusion)


def test_another_encoder_and_too_few_questions_are_refused(tmp_path: Path) -> None:
    given = catalogue(tmp_path, law=LAW)
    other = replace(given, router=replace(given.router, encoder="other"))
    with pytest.raises(ConfigError, match='set encoder = "hashing-64"'):
        refit(given, other, ENCODER)
    with pytest.raises(ConfigError, match="has 2 questions in out_of_domain"):
        refit(given, replace(given, out_of_domain=OUTSIDE[:2]), ENCODER)


def test_the_shipped_experts_keep_their_questions_beside_an_own_one(
    encoder_dir: Path, tmp_path: Path
) -> None:
    """Of the catalogue's examples alone the router did not learn "What is the symbol of iron?"."""
    encoder = asyncio.run(SentenceEncoder.load(encoder_dir))
    shipped = load_catalogue()
    court = (
        "What is a tort?", "Who may sign a contract?", "What does a judge decide?",
        "What is a breach of contract?", "When is a will valid?", "What is a notary?",
        "Who pays the costs of a lawsuit?", "What is an injunction?", "What is negligence in law?",
        "What does a defendant do?", "What is the statute of limitations?", "What is an appeal?",
    )  # fmt: skip
    law = replace(
        shipped,
        experts=(*shipped.experts, Expert("law", "law", "")),
        examples=(*shipped.examples, court),
    )
    found = refit(shipped, law, encoder)
    head = tmp_path / str(found.write(tmp_path))
    router = asyncio.run(Router.build(replace(law, router=replace(law.router, head=head)), encoder))
    asked = {
        "What is the symbol of iron?": "chemistry",
        "How many protons does calcium have?": "chemistry",
        "Which amino acid does GCU encode?": "biology",
        "What is the complement of ACGT?": "biology",
        "What is 17 plus 8?": "mathematics",
        "Is 21 a prime number?": "mathematics",
        "What is a breach of a contract in law?": "law",
        "What is the capital of Norway?": NONE,
        "Who painted the Mona Lisa?": NONE,
    }
    routes = router.route(asyncio.run(encoder.encode(list(asked))))
    assert [NONE if each.is_fallback else each.expert for each in routes] == list(asked.values())
