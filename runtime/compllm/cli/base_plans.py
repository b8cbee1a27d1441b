"""How well a base plans by examples alone: twenty questions whose plans are known.

`compllm base use` reports it for a base that no trained generator is made for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from compllm.plan import parse_plan
from compllm.types import Plan

# Everyday questions: alone, in two or three parts, and in steps.
KNOWN = (
    ("What is the capital of Portugal?", "1 | What is the capital of Portugal?"),
    ("Who invented the telephone?", "1 | Who invented the telephone?"),
    ("How many strings does a violin have?", "1 | How many strings does a violin have?"),
    ("Which river flows through Cairo?", "1 | Which river flows through Cairo?"),
    ("What is 17 minus 9?", "1 | What is 17 minus 9?"),
    (
        "Who painted Guernica, and where was he born?",
        "1 | Who painted Guernica?\n2 <1> | Where was #1 born?",
    ),
    (
        "What is the largest desert, and what is the longest river?",
        "1 | What is the largest desert?\n2 | What is the longest river?",
    ),
    (
        "What is the capital of Peru and which language is spoken in Norway?",
        "1 | What is the capital of Peru?\n2 | Which language is spoken in Norway?",
    ),
    (
        "What is the symbol of tin, and who wrote Faust?",
        "1 | What is the symbol of tin?\n2 | Who wrote Faust?",
    ),
    (
        "How many legs does a bee have, what is 4 times 5, and what is the capital of Chile?",
        "1 | How many legs does a bee have?\n2 | What is 4 times 5?\n"
        "3 | What is the capital of Chile?",
    ),
    (
        "When did the First World War begin, and when did it end?",
        "1 | When did the First World War begin?\n2 | When did the First World War end?",
    ),
    (
        "Is the number of days in March odd?",
        "1 | How many days are in March?\n2 <1> | Is #1 odd?",
    ),
    (
        "What is twice the number of wheels of a car?",
        "1 | How many wheels does a car have?\n2 <1> | What is twice #1?",
    ),
    (
        "What is the number of legs of a spider plus the number of legs of a dog?",
        "1 | How many legs does a spider have?\n2 | How many legs does a dog have?\n"
        "3 <1,2> | What is #1 plus #2?",
    ),
    (
        "What is the number of months in a year minus the number of days in a week?",
        "1 | How many months are in a year?\n2 | How many days are in a week?\n"
        "3 <1,2> | What is #1 minus #2?",
    ),
    (
        "Which is larger, the number of letters in the alphabet or the number of hours in a day?",
        "1 | How many letters are in the alphabet?\n2 | How many hours are in a day?\n"
        "3 <1,2> | Which is larger, #1 or #2?",
    ),
    (
        "Which is higher, Mount Everest or K2?",
        "1 | How high is Mount Everest?\n2 | How high is K2?\n3 <1,2> | Which is higher, #1 or #2?",
    ),
    (
        "What is the capital of the country where the Nile ends?",
        "1 | In which country does the Nile end?\n2 <1> | What is the capital of #1?",
    ),
    (
        "Who was the first president of the United States, and in which year was he born?",
        "1 | Who was the first president of the United States?\n2 <1> | In which year was #1 born?",
    ),
    (
        "How many sides does a hexagon have, and is that number even?",
        "1 | How many sides does a hexagon have?\n2 <1> | Is #1 even?",
    ),
)


@dataclass(frozen=True, slots=True)
class PlanQuality:
    """What became of the questions."""

    num_questions: int
    num_usable: int  # plans that break no rule
    num_same_graph: int  # as many sub-queries with the same parents as the known plan
    num_exact: int  # word for word

    def __str__(self) -> str:
        return (
            f"of {self.num_questions} questions {self.num_usable} have a usable plan, "
            f"{self.num_same_graph} the right parts, {self.num_exact} word for word"
        )


def quality(plans: Sequence[Plan]) -> PlanQuality:
    """plans: of the questions of `KNOWN`, in their order."""
    known = [parse_plan(text).sub_queries for _, text in KNOWN]
    pairs = [
        (each.sub_queries, right)
        for each, right in zip(plans, known, strict=True)
        if not each.is_fallback
    ]
    same = [
        (found, right)
        for found, right in pairs
        if [line.parents for line in found] == [line.parents for line in right]
    ]
    return PlanQuality(
        len(known), len(pairs), len(same), sum(found == right for found, right in same)
    )


def measure_plans() -> PlanQuality:
    """Build the engine of the base in use, start it, and let it plan. Raises CompllmError."""
    from compllm import paths
    from compllm.cli.prepare import prepare
    from compllm.server import triton_server

    prepare()
    with triton_server.running(paths.engine_dir()) as server:
        return quality(asyncio.run(_plans(server.grpc_url)))


async def _plans(url: str) -> list[Plan]:
    from compllm.assembly import make_generator
    from compllm.backends.select import connect_as_set
    from compllm.catalogue import load_catalogue
    from compllm.config import load_config
    from compllm.decompose import decompose
    from compllm.types import Query

    config, catalogue = load_config(), load_catalogue()
    # The base itself, shown examples, and greedily: other plans are drawn when it is asked.
    generator = replace(make_generator(catalogue, config), adapter_id=None, num_draws=0)
    backend = await connect_as_set(url, config.server, catalogue)

    async def plan(number: int, question: str) -> Plan:
        query = Query(question, id=f"plan-{number}")
        async for item in decompose(query, backend, generator):
            if isinstance(item, Plan):
                return item
        raise AssertionError("decompose ends with a plan")

    try:
        return await asyncio.gather(*(plan(n, question) for n, (question, _) in enumerate(KNOWN)))
    finally:
        await backend.aclose()
