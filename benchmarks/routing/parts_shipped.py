"""Parts of `eval_router.py` about the routers that a user has, and about asking the base model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.routing.bench import Bench, shipped
from compllm.errors import ConfigError

if TYPE_CHECKING:
    from compllm.routing.embed import Array

OWN = "our sub-queries (test wordings), shipped routers with their floors"
PARAPHRASE = "routes that change with the dress of the question, %"  # as in the result files
SPEED = "one sub-query: embedding and routing"
ASKED = "the base model asked to choose"


def part_own(bench: Bench) -> None:
    """Sub-queries of the composite sets and the one-step test sets: who gets them?"""
    from benchmarks.intervals import mean
    from benchmarks.tables import interval_cells
    from compllm.build_scripts.routing.questions import read_composites, read_datasets

    folder = bench.arguments.datasets
    if folder is None:
        bench.report.summary["own"] = "no data sets: run make_datasets.py first"
        return
    sets = {
        "sub-queries of -P": read_composites(folder, "test", ("p",)),
        "sub-queries of -All": read_composites(folder, "test", ("all",)),
        "one-step questions": read_datasets(folder, bench.experts, "test"),
    }
    for set_name, questions in sets.items():
        vectors = bench.vectors([question.text for question in questions])
        for name, router in shipped(bench).items():
            routes = router.route(np.stack([vectors[question.text] for question in questions]))
            pairs = list(zip(routes, questions, strict=True))
            right = [route.expert == question.expert for route, question in pairs]
            bench.report.add(
                OWN,
                set=set_name,
                questions=len(questions),
                router=name,
                **interval_cells("right", mean(right)),
                **{
                    "left_to_the_base_%": round(
                        100 * float(np.mean([r.is_fallback for r in routes])), 1
                    )
                },
            )
        bench.tick(f"own: {set_name}")


def part_paraphrase(bench: Bench) -> None:
    """Upper case, punctuation, white space: how often does the route flip?"""
    from benchmarks.routing.invariance import PARAPHRASES
    from compllm.build_scripts.routing.questions import first_of_each
    from compllm.routing.embed import plain

    each = 2 if bench.arguments.quick else 8
    sets = {"subject questions": [q.text for q in first_of_each(bench.subjects, each)]}
    if own := bench.sub_queries(each * 57):
        sets["our sub-queries"] = [question.text for question in own]
    for set_name, texts in sets.items():
        paraphrased = {
            name: [change(text) for text in texts] for name, change in PARAPHRASES.items()
        }
        # The encoder reads the plain form, so that is what is looked up.
        every = [plain(text) for one in (texts, *paraphrased.values()) for text in one]
        vectors = bench.vectors(every)

        def rows(some: Sequence[str], vectors: dict[str, Array] = vectors) -> Array:
            return np.stack([vectors[plain(text)] for text in some])

        for name, router in shipped(bench).items():
            before = [route.expert for route in router.route(rows(texts))]
            flips = {}
            for change, others in paraphrased.items():
                after = [route.expert for route in router.route(rows(others))]
                share = np.mean([a != b for a, b in zip(before, after, strict=True)])
                flips[change] = round(100 * float(share), 1)
            bench.report.add(PARAPHRASE, set=set_name, questions=len(texts), router=name, **flips)
        bench.tick(f"paraphrase: {set_name}")


def part_speed(bench: Bench) -> None:
    """Milliseconds of one sub-query, beside an engine that does nothing; the encoder as it is and
    with OpenVINO's own products, in turns."""
    from benchmarks.routing.latency import measure
    from compllm.paths import encoder_dir
    from compllm.routing.embed import OpenVINOEncoder, SentenceEncoder, encoder_id, find_ir

    texts = [text for examples in bench.catalogue.examples for text in examples]
    if own := bench.sub_queries():
        texts = [question.text for question in own[:300]]
    router = shipped(bench)["default"]
    source = encoder_id(encoder_dir())
    ir = find_ir(encoder_dir(), source)
    if ir is None:
        raise ConfigError(f"no OpenVINO form of the encoder in {encoder_dir()}: 'compllm doctor'")

    async def run() -> None:
        for number in range(bench.arguments.rounds):
            for has_own in (True, False) if number % 2 == 0 else (False, True):
                # A new encoder: nothing is kept from the round before.
                model = OpenVINOEncoder(ir, has_matmul_offload=has_own)
                encoder = SentenceEncoder(model, source)
                cells = await measure(router, encoder, texts)
                products = "the engine's kernels" if model.num_offloaded_matmuls else "OpenVINO's"
                bench.report.add(SPEED, products=products, round=number + 1, **cells)
            bench.tick("speed")

    asyncio.run(run())


def part_asked(bench: Bench) -> None:
    """The LLM as the router, on some of the test questions and of our sub-queries."""
    from benchmarks.intervals import mean
    from benchmarks.routing.asked import ask_model
    from benchmarks.tables import interval_cells
    from compllm.build_scripts.routing.questions import first_of_each, halves
    from compllm.paths import engine_dir

    _, theirs = halves(bench.subjects)
    some = first_of_each(theirs, 1 if bench.arguments.quick else 12)
    inside = [question for question in some if question.expert]
    outside = [q for q in first_of_each(theirs, 2) if not q.expert][: len(inside)]
    own = bench.sub_queries(max(1, len(inside)))
    questions = [*inside, *outside, *own]
    engine = bench.arguments.engine or engine_dir()
    names, spent_ms = ask_model(bench.catalogue, engine, questions, bench.folder)
    is_right = [
        name == (question.expert or bench.catalogue.base.name)
        for name, question in zip(names, questions, strict=True)
    ]
    ends = np.cumsum([len(inside), len(outside), len(own)])
    kinds = ("of an expert's subject", "for no expert: left to the base", "our sub-queries")
    for kind, start, end in zip(kinds, (0, *ends), ends, strict=False):
        if end > start:
            bench.report.add(
                ASKED,
                kind=kind,
                questions=int(end - start),
                **interval_cells("right", mean(is_right[start:end])),
                ms_a_question=round(spent_ms) or None,
            )
    bench.tick("asked")
