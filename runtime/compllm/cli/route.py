"""`compllm route`: which expert would answer, for one question or for a file of any length.

JSON lines in, each with a "question"; the same lines out, in the same order, each with "expert",
"similarity" and "is_fallback". A batch is written the moment it is routed, and a run that is
stopped goes on behind the last line of its output. Needs no server.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compllm.cli.console import STDIN, print_table, progress, say
from compllm.cli.shared import ConfigOption
from compllm.errors import ConfigError
from compllm.plural import counted

if TYPE_CHECKING:
    from compllm.catalogue import Catalogue
    from compllm.cli.question_file import Record
    from compllm.routing.embed import Encoder
    from compllm.routing.route import Router

DEFAULT = "default"  # the catalogue's router
EXAMPLES = "examples"  # similarity with the catalogue's example questions
_KEYS = ("expert", "similarity", "is_fallback")  # a line's own, in this order
_BATCH = 64  # questions between two writes
_TOLERANCE = 1e-3  # of a similarity that another processor computed


QuestionArgument = Annotated[
    str | None,
    typer.Argument(metavar="QUESTION", help="One question; its route is printed as a table."),
]
QuestionsOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Route each line of a file, {'question': ...}; '-' reads standard input.",
    ),
]
RouterOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="'default': the catalogue's; 'examples': similarity with the catalogue's example "
        "questions; or a router that `compllm train router` wrote, by name or folder.",
    ),
]
LinesOption = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="OUT",
        help="Where the lines go; with --questions a file is continued after its last line. "
        "Default: standard output.",
    ),
]
FloorOption = Annotated[
    float | None,
    typer.Option(
        min=-1.0,
        max=1.0,
        metavar="SCORE",
        help="The score below which the base answers; -1: never. Default: the router's own.",
    ),
]


def route(
    question: QuestionArgument = None,
    questions: QuestionsOption = None,
    router: RouterOption = DEFAULT,
    json_output: LinesOption = None,
    floor: FloorOption = None,
    config: ConfigOption = None,
) -> None:
    """Report which expert would answer a question, or each of a file.

    With --questions its lines come out with "expert", "similarity" and "is_fallback".
    """
    from compllm.cli.question_file import appended, check_questions
    from compllm.connect import load_client_config
    from compllm.served import catalogue_of

    if (question is None) == (questions is None):
        raise ConfigError("give a question, or a file of them with --questions FILE")
    out = None if json_output == STDIN else json_output
    total = None if questions is None else check_questions(questions, out)
    catalogue = catalogue_of(load_client_config(config))
    chooser = asyncio.run(Chooser.open(catalogue, router, floor))
    if questions is not None:
        num_routed, num_fallbacks = route_questions(chooser, questions, out, total)
        say(f"{counted(num_routed, 'question')} routed, {num_fallbacks} to the base")
    elif question is not None and question.strip():
        (record,) = chooser.answer([{"question": question}])
        if json_output is None:
            print_table(("expert", "similarity", "floor", "router"), [chooser.row(record)])
            return
        with appended(out) as write:
            write([record])
    else:
        raise ConfigError("the question is empty")


@dataclass(frozen=True, slots=True)
class Chooser:
    """A router and the encoder whose vectors it reads."""

    name: str
    encoder: Encoder
    router: Router

    @classmethod
    async def open(cls, catalogue: Catalogue, name: str, floor: float | None = None) -> Chooser:
        """By name: the catalogue's, its examples, one of `router_folders`, or a path to one.

        Raises ConfigError with the names there are, and what `Router.build` raises.
        """
        from compllm.paths import encoder_dir
        from compllm.routing.artefact import find_router
        from compllm.routing.embed import SentenceEncoder
        from compllm.routing.route import Router

        path = None if name in (DEFAULT, EXAMPLES) else find_router(name)
        encoder = await SentenceEncoder.load(encoder_dir())
        if path is not None:
            router = await Router.load(path, catalogue, encoder)
        elif name == EXAMPLES:
            router = await Router.of_examples(catalogue, encoder)
        else:
            router = await Router.build(catalogue, encoder)
        return cls(name, encoder, router if floor is None else replace(router, floor=floor))

    def answer(self, records: Sequence[Record]) -> list[Record]:
        """The records with their routes, in their order."""
        vectors = asyncio.run(self.encoder.encode([record["question"] for record in records]))
        return [
            {
                **record,
                "expert": route.expert,
                "similarity": round(route.similarity, 6),
                "is_fallback": route.is_fallback,
            }
            for record, route in zip(records, self.router.route(vectors), strict=True)
        ]

    def row(self, record: Record) -> tuple[str, ...]:
        """Of the table for people."""
        expert = record["expert"] + (" (no expert is near)" if record["is_fallback"] else "")
        return expert, f"{record['similarity']:.4f}", f"{self.router.floor:.4f}", self.name


def route_questions(
    chooser: Chooser, questions: Path, out: Path | None, total: int | None = None
) -> tuple[int, int]:
    """Route every question that `out` (None: standard output) has no line for yet; returns how many
    these were, and how many of them fell back. total: for the progress bar.

    Raises ConfigError for a bad line, with those before it written, and for an output that belongs
    to other questions or another router.
    """
    from compllm.cli.question_file import appended, batches, unanswered

    lines, num_there, last = unanswered(questions, out, _KEYS)
    if last is not None:
        _check_same_router(chooser, last, out)
    num_routed = num_fallbacks = 0
    with appended(out) as write, progress(total) as advance:
        advance(num_there)
        for batch in batches(lines, _BATCH):
            records = chooser.answer([question.record for question in batch])
            write(records)
            num_routed += len(records)
            num_fallbacks += sum(record["is_fallback"] for record in records)
            advance(len(records))
    return num_routed, num_fallbacks


def _check_same_router(chooser: Chooser, last: Record, out: Path | None) -> None:
    """Lines of two routers in one file would look like one router's."""
    (ours,) = chooser.answer([last])
    there = last.get("similarity")
    is_same = (
        isinstance(there, int | float)
        and abs(there - ours["similarity"]) <= _TOLERANCE
        and all(last.get(key) == ours[key] for key in ("expert", "is_fallback"))
    )
    if not is_same:
        raise ConfigError(
            f"{out} ends with the expert {last.get('expert')!r} at {there!r} where router "
            f"{chooser.name!r} finds {ours['expert']!r} at {ours['similarity']}: it is another "
            "router's, name another file"
        )
