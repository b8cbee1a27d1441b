"""`compllm expert test`: to which expert questions go, and what the running server answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compllm.cli.console import print_json, print_table, say
from compllm.cli.expert_change import NameArgument, load_encoder
from compllm.cli.known_questions import read_items
from compllm.cli.shared import ConfigOption, JsonOption, read_settings, with_server
from compllm.errors import ServerError
from compllm.plural import counted

if TYPE_CHECKING:
    from compllm.config import Config
    from compllm.routing.embed import SentenceEncoder
    from compllm.routing.route import Router


def try_expert(
    name: NameArgument,
    questions: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="Questions: a line each, or JSON lines or CSV of question and, where known, "
            "answer.",
        ),
    ],
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="HOST:PORT", help="Of a server; default: that of `up`."),
    ] = None,
    config: ConfigOption = None,
    is_json: JsonOption = False,
) -> None:
    """Report to which expert each question goes and, where a server runs, what it answers.

    Each question is asked whole, without a plan.
    """
    from compllm.routing.route import Router
    from compllm.served import catalogue_of

    settings = read_settings(config, url)
    catalogue = catalogue_of(settings)
    catalogue.expert(name)
    items = read_items(questions)
    texts = [item.question for item in items]
    encoder = load_encoder()
    router = asyncio.run(Router.build(catalogue, encoder))
    routes = _routes(router, encoder, texts)
    answers = _answers(settings, texts)
    found = list(zip(items, routes, answers, strict=True))
    num_routed = sum(route == name for route in routes)
    known = [item.is_right(answer) for item, _, answer in found if item.expected and answer]
    if is_json:
        counts = {"questions": len(items), "routed": num_routed, "right": sum(known)}
        lines = [
            {
                "question": item.question,
                "expert": route,
                "answer": answer,
                "expected": item.shown if item.expected else None,
            }
            for item, route, answer in found
        ]
        return print_json({"expert": name, **counts, "known": len(known), "lines": lines})
    rows = [(route, item.question, answer or "-", item.shown) for item, route, answer in found]
    print_table(("routed to", "question", "answer", "expected"), rows)
    print(f"{num_routed} of {counted(len(items), 'question')} go to {name}")
    if known:
        print(f"{sum(known)} of {counted(len(known), 'answer')} as expected")


def _routes(router: Router, encoder: SentenceEncoder, texts: Sequence[str]) -> list[str]:
    vectors = asyncio.run(encoder.encode(texts))
    return [route.expert for route in router.route(vectors)]


def _answers(settings: Config, texts: Sequence[str]) -> list[str | None]:
    """None for each where no server runs."""
    try:
        found, _ = with_server(settings)
    except ServerError as error:
        say(f"without answers: {error}")
        return [None] * len(texts)
    return list(asyncio.run(_ask_all(found, texts)))


async def _ask_all(settings: Config, texts: Sequence[str]) -> list[str]:
    from compllm.pipeline import CompLLM
    from compllm.plan import direct_plan
    from compllm.types import Query

    async with await CompLLM.connect(settings) as llm:
        asked = (llm.ask(Query(text), plan=direct_plan(text)) for text in texts)
        return [answer.text for answer in await asyncio.gather(*asked)]
