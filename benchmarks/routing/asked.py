"""The base model asked to choose, through the embedded engine under a guide. Answers are kept."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.accuracy.engine import open_engine
from benchmarks.routing.llm_router import NONE, LLMRouter
from benchmarks.store import ResultStore, content_hash
from compllm.build_scripts.routing.questions import Question
from compllm.catalogue import Catalogue
from compllm.prompts import prompt_text

_AT_A_TIME = 16


def ask_model(
    catalogue: Catalogue, engine_dir: Path, questions: Sequence[Question], folder: Path
) -> tuple[list[str], float]:
    """The name chosen for each question ("base" for none), and milliseconds a question of those
    that were asked now, many at a time; 0 when all were kept from an earlier run."""
    shots = [
        (texts[0], expert.name)
        for expert, texts in zip(catalogue.experts, catalogue.examples, strict=True)
    ]
    shots += [(text, NONE) for text in catalogue.out_of_domain[:1]]
    with closing(open_engine(engine_dir)) as engine:
        router = LLMRouter(
            engine.backend(), catalogue.experts, catalogue.base, catalogue.template, tuple(shots)
        )
        configuration = content_hash(engine.identity, prompt_text(router.prompt("")))
        with closing(ResultStore(folder, "asked", configuration)) as store:
            return asyncio.run(_ask(router, questions, store))


async def _ask(
    router: LLMRouter, questions: Sequence[Question], store: ResultStore
) -> tuple[list[str], float]:
    def key(question: Question) -> tuple[str, str]:
        digest = content_hash(question.text)
        return digest, digest

    missing = [question for question in questions if store.get(*key(question)) is None]
    start_s = time.perf_counter()
    for first in range(0, len(missing), _AT_A_TIME):
        batch = missing[first : first + _AT_A_TIME]
        routes = await router.route([question.text for question in batch])
        for question, route in zip(batch, routes, strict=True):
            store.put(*key(question), {"expert": route.expert})
    spent_ms = (time.perf_counter() - start_s) * 1e3
    names = [str((store.get(*key(question)) or {})["expert"]) for question in questions]
    return names, spent_ms / len(missing) if missing else 0.0
