"""`compllm expert test`: to which expert questions go, and what the running server answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compllm.cli.console import print_json, print_table, say
from compllm.cli.expert_change import NameArgument, load_encoder
from compllm.cli.shared import ConfigOption, JsonOption, read_settings, with_server
from compllm.errors import ConfigError, ServerError
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
    asked = _asked(questions)
    encoder = load_encoder()
    router = asyncio.run(Router.build(catalogue, encoder))
    routes = _routes(router, encoder, [text for text, _ in asked])
    answers = _answers(settings, [text for text, _ in asked])
    records = [
        {"question": text, "expert": route, "answer": answer, "expected": expected}
        for (text, expected), route, answer in zip(asked, routes, answers, strict=True)
    ]
    num_routed = sum(route == name for route in routes)
    known = [each for each in records if each["answer"] is not None and each["expected"]]
    num_right = sum(_is_right(str(each["answer"]), str(each["expected"])) for each in known)
    if is_json:
        counts = {"questions": len(asked), "routed": num_routed, "right": num_right}
        return print_json({"expert": name, **counts, "known": len(known), "lines": records})
    rows = [
        (route, text, answer if answer is not None else "-", expected or "-")
        for (text, expected), route, answer in zip(asked, routes, answers, strict=True)
    ]
    print_table(("routed to", "question", "answer", "expected"), rows)
    print(f"{num_routed} of {counted(len(asked), 'question')} go to {name}")
    if known:
        print(f"{num_right} of {counted(len(known), 'answer')} as expected")


def _asked(path: Path) -> list[tuple[str, str | None]]:
    from compllm.build_scripts.own.examples import read_records, text_of

    found = []
    for number, record in read_records(path):
        where = f"{path}: line {number}"
        expected = text_of(record, "answer", where) if record.get("answer") else None
        found.append((text_of(record, "question", where), expected))
    if not found:
        raise ConfigError(f"{path} has no question: give one a line")
    return found


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


def _is_right(answer: str, expected: str) -> bool:
    from compllm.build_scripts.own.examples import key_of

    return key_of(answer) == key_of(expected)
