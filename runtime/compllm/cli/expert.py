"""`compllm expert add | list | test | remove`: the experts of a project.

Each command takes the project of the folder it runs in, or that of --config. `add` and `remove`
report what the router does with the questions it knows, and end with what is served now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compllm.cli.console import print_json, print_table, say
from compllm.cli.shared import ConfigOption, JsonOption, read_settings, with_server
from compllm.errors import ConfigError, ServerError
from compllm.paths import PROJECT_FILE
from compllm.plural import counted

if TYPE_CHECKING:
    from compllm.build_scripts.own.experts import Change
    from compllm.build_scripts.own.facts import Fact
    from compllm.build_scripts.own.project import Project
    from compllm.build_scripts.own.router import Refit
    from compllm.catalogue import Endpoint
    from compllm.config import Config
    from compllm.routing.embed import SentenceEncoder
    from compllm.routing.route import Router

_SHOWN = 20  # questions that a list names

app = typer.Typer(
    help="Add an expert of your own to a project, list, test or remove one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The expert's name.")]
YesOption = Annotated[
    bool,
    typer.Option(
        "--yes",
        help="Do it even where questions of others are routed worse, or most of the expert's own "
        "are not found.",
    ),
]


@app.command()
def add(
    name: NameArgument,
    adapter: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A PEFT directory of a LoRA adapter.")
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(
            metavar="FACTS",
            help="Train the adapter on facts: JSON lines or CSV of question, answer and, where "
            "there are any, wordings.",
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            "--url",
            metavar="URL",
            help="The expert answers at an OpenAI-compatible server: http://HOST:PORT.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="With --url: the model's name at that server."),
    ] = None,
    key_env: Annotated[
        str,
        typer.Option(
            metavar="VARIABLE",
            help="With --url: the environment variable that holds the server's key. "
            "Default: it wants none.",
        ),
    ] = "",
    examples: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Questions for this expert: a line each, or JSON lines or CSV with 'question'. "
            "With --train the facts' own questions are taken, too.",
        ),
    ] = None,
    describe: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The domain in words, with commas. Without --examples the router goes by it.",
        ),
    ] = None,
    system: Annotated[
        str,
        typer.Option(
            metavar="TEXT",
            help="A system text that the adapter was trained with. Default: none; with --url "
            "the base's, which asks for a few words.",
        ),
    ] = "",
    is_same_base: Annotated[
        bool,
        typer.Option(
            "--same-base",
            help="The adapter is made for the weights of the base in use, whatever name it records "
            "(a 4-bit repack, for instance).",
        ),
    ] = False,
    epochs: Annotated[
        float, typer.Option(min=0.01, metavar="N", help="With --train: passes over the facts.")
    ] = 12.0,
    max_minutes: Annotated[
        float,
        typer.Option(min=0.0, metavar="N", help="With --train: minutes at most; 0 is no limit."),
    ] = 30.0,
    is_yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """Add an expert: a LoRA adapter, one that is trained here on facts, or a server of its own.

    An adapter is checked and copied into the project; a server is asked for a few words. The router
    is fitted again, and a running server of the project serves the expert without a restart. A step
    that fails leaves nothing.
    """
    from compllm.build_scripts.own import experts as own
    from compllm.build_scripts.own.examples import check_contradictions

    if [adapter, train, url].count(None) != 2:
        raise ConfigError(
            "give one of --adapter DIR (a PEFT directory), --train FACTS and --url URL"
        )
    if url is None and (model is not None or key_env):
        raise ConfigError("--model and --key-env belong to --url URL")
    if train is None and examples is None and describe is None:
        raise ConfigError("give --examples FILE (questions, one a line) or --describe TEXT")
    project = _project(config)
    with own.one_at_a_time():
        project = _project(config)  # another command may have changed it
        own.check_new(project.catalogue, name)
        questions, facts = _questions(train, examples, describe)
        check_contradictions(project.catalogue, questions)
        encoder = _encoder()
        endpoint = _endpoint(url, model, key_env) if url is not None else None
        if train is not None:
            from compllm.build_scripts.own.training import train_on

            template = project.catalogue.template
            adapter = train_on(facts, name, template, epochs=epochs, max_minutes=max_minutes)
        domain = describe or name.replace("_", " ").replace("-", " ")
        if endpoint is not None:
            system = system or project.catalogue.base.system
        wish = own.Wish(name, adapter, domain, questions, system, is_same_base, endpoint)
        change = own.plan_add(project, wish, encoder)
        _show(change.refit)
        _refuse_lost(change, is_yes=is_yes)
        _refuse_worse(change, is_yes=is_yes)
        outcome = own.apply(change)
        if train is not None and adapter is not None:
            from compllm.build_scripts.own.training import forget

            forget(adapter)
    print(f"expert {name} added ({counted(len(questions), 'example')}): {outcome}")


@app.command("list")
def list_experts(config: ConfigOption = None, is_json: JsonOption = False) -> None:
    """List the project's experts, with their adapters and examples.

    Without a project they are those of the running server, else the shipped ones.
    """
    from compllm.served import catalogue_of

    catalogue = catalogue_of(read_settings(config))
    rows = list(zip(catalogue.experts, catalogue.examples, strict=True))
    if is_json:
        found = [
            {
                "name": expert.name,
                "domain": expert.domain,
                "adapter": expert.adapter,
                "adapter_id": expert.adapter_id,
                "model": expert.model,
                "examples": len(texts),
            }
            for expert, texts in rows
        ]
        return print_json({"catalogue": str(catalogue.path), "experts": found})
    away = {each.key for each in catalogue.endpoints}
    table = [
        (e.name, e.domain, e.adapter or (e.model if e.model in away else "-"), str(len(texts)))
        for e, texts in rows
    ]
    print_table(("expert", "domain", "adapter or server", "examples"), table)


@app.command("test")
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
    encoder = _encoder()
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


@app.command()
def remove(name: NameArgument, config: ConfigOption = None) -> None:
    """Remove an expert: its table, its copy of the adapter, and its part of the router."""
    from compllm.build_scripts.own import experts as own

    _project(config)
    with own.one_at_a_time():
        change = own.plan_remove(_project(config), name, _encoder())
        _show(change.refit)
        outcome = own.apply(change)
    print(f"expert {name} removed: {outcome}")


def _endpoint(url: str, model: str | None, key_env: str) -> Endpoint:
    """A server that answered. Raises ConfigError."""
    from compllm.backends.endpoints import check_endpoint
    from compllm.backends.select import key_of
    from compllm.catalogue import Endpoint

    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"--url is {url!r}: give http://HOST:PORT or https://HOST")
    if not model:
        raise ConfigError("give --model NAME: the model's name at that server")
    endpoint = Endpoint(url, model, key_env)
    said = asyncio.run(check_endpoint(endpoint, key_of(key_env, "--key-env")))
    say(f"{model} at {url} answers: {said.strip()!r}")
    return endpoint


def _project(config: Path | None) -> Project:
    from compllm.build_scripts.own.project import Project

    if config is None:
        raise ConfigError(
            f"no {PROJECT_FILE} in this folder or above: make a project with `compllm init DIR`, "
            "or name one with --config FILE"
        )
    return Project(config)


def _questions(
    train: Path | None, examples: Path | None, describe: str | None
) -> tuple[tuple[str, ...], tuple[Fact, ...]]:
    """What the router learns, and the facts to train on."""
    from compllm.build_scripts.own.examples import described, key_of, read_examples
    from compllm.build_scripts.own.facts import questions_of, read_facts

    facts: tuple[Fact, ...] = read_facts(train) if train is not None else ()
    found = questions_of(facts) + (read_examples(examples) if examples is not None else ())
    if not found and describe is not None:
        found = described(describe)
    return tuple({key_of(text): text for text in found}.values()), facts


def _encoder() -> SentenceEncoder:
    from compllm.build_scripts.fetch_base import ensure_encoder
    from compllm.routing.embed import SentenceEncoder

    return asyncio.run(SentenceEncoder.load(ensure_encoder()))


def _show(refit: Refit) -> None:
    """The confusion table, and the questions that moved. On stderr, as progress is."""
    if refit.confusion.size:
        say("routing of all examples, each by a router that was fitted without it:")
        width = max(len(name) for name in (*refit.names, "belongs to"))
        columns = "  ".join(f"{name:>{max(6, len(name))}}" for name in refit.names)
        say(f"  {'belongs to':<{width}}  {columns}")
        for name, counts in zip(refit.names, refit.confusion, strict=True):
            cells = zip(refit.names, counts, strict=True)
            row = "  ".join(f"{count:>{max(6, len(other))}}" for other, count in cells)
            say(f"  {name:<{width}}  {row}")
    if not refit.moved:
        say("no question of the others is routed elsewhere than before")
    for each in refit.moved[:_SHOWN]:
        mark = " (worse)" if each.is_worse else ""
        say(f"moved: {each.question!r} of {each.owner}: {each.before} -> {each.after}{mark}")
    if len(refit.moved) > _SHOWN:
        say(f"and {len(refit.moved) - _SHOWN} more")


def _refuse_lost(change: Change, *, is_yes: bool) -> None:
    """A new expert to which the router sends less than half of its own questions."""
    place = change.refit.names.index(change.name)
    counts = change.refit.confusion[place] if change.refit.confusion.size else [0] * (place + 1)
    own, found = int(sum(counts)), int(counts[place])
    if 2 * found < own and not is_yes:
        raise ConfigError(
            f"a router fitted without them sends {found} of {change.name}'s {own} examples to it, "
            "and nothing was changed: give more examples (20 are better), or --yes"
        )


def _refuse_worse(change: Change, *, is_yes: bool) -> None:
    worse = change.refit.worse
    if worse and not is_yes:
        owners = ", ".join(sorted({each.owner for each in worse}))
        raise ConfigError(
            f"{counted(len(worse), 'question')} of {owners} would be routed worse, and nothing was "
            f"changed: give other examples to {change.name}, or add it all the same with --yes"
        )


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
