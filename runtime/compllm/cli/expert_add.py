"""`compllm expert add`: an adapter, facts to train on, or a server become a project's expert."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compllm.cli.console import say
from compllm.cli.expert_change import (
    NameArgument,
    load_encoder,
    open_project,
    refuse_worse,
    show_refit,
)
from compllm.cli.shared import ConfigOption
from compllm.errors import ConfigError
from compllm.plural import counted

if TYPE_CHECKING:
    from compllm.build_scripts.own.experts import Change
    from compllm.build_scripts.own.facts import Fact
    from compllm.catalogue import Endpoint

AdapterOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="A PEFT directory of a LoRA adapter.")
]
TrainOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FACTS",
        help="Train the adapter on facts: JSON lines or CSV of question, answer and, where "
        "there are any, wordings.",
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The expert answers at an OpenAI-compatible server: http://HOST:PORT.",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="With --url: the model's name at that server."),
]
KeyOption = Annotated[
    str,
    typer.Option(
        metavar="VARIABLE",
        help="With --url: the environment variable that holds the server's key. "
        "Default: it wants none.",
    ),
]
ExamplesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Questions for this expert: a line each, or JSON lines or CSV with 'question'. "
        "With --train the facts' own questions are taken, too.",
    ),
]
DescribeOption = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="The domain in words, with commas. Without --examples the router goes by it.",
    ),
]
SystemOption = Annotated[
    str,
    typer.Option(
        metavar="TEXT",
        help="A system text that the adapter was trained with. Default: none; with --url "
        "the base's, which asks for a few words.",
    ),
]
SameBaseOption = Annotated[
    bool,
    typer.Option(
        "--same-base",
        help="The adapter is made for the weights of the base in use, whatever name it records "
        "(a 4-bit repack, for instance).",
    ),
]
EpochsOption = Annotated[
    float, typer.Option(min=0.01, metavar="N", help="With --train: passes over the facts.")
]
MinutesOption = Annotated[
    float,
    typer.Option(min=0.0, metavar="N", help="With --train: minutes at most; 0 is no limit."),
]
YesOption = Annotated[
    bool,
    typer.Option(
        "--yes",
        help="Do it even where questions of others are routed worse, or most of the expert's own "
        "are not found.",
    ),
]


def add(
    name: NameArgument,
    adapter: AdapterOption = None,
    train: TrainOption = None,
    url: ServerOption = None,
    model: ModelOption = None,
    key_env: KeyOption = "",
    examples: ExamplesOption = None,
    describe: DescribeOption = None,
    system: SystemOption = "",
    is_same_base: SameBaseOption = False,
    epochs: EpochsOption = 12.0,
    max_minutes: MinutesOption = 30.0,
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
    project = open_project(config)
    with own.one_at_a_time():
        project = open_project(config)  # another command may have changed it
        own.check_new(project.catalogue, name)
        questions, facts = _questions(train, examples, describe)
        check_contradictions(project.catalogue, questions)
        encoder = load_encoder()
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
        show_refit(change.refit)
        _refuse_lost(change, is_yes=is_yes)
        refuse_worse(change, is_yes=is_yes)
        outcome = own.apply(change)
        if train is not None and adapter is not None:
            from compllm.build_scripts.own.training import forget

            forget(adapter)
    print(f"expert {name} added ({counted(len(questions), 'example')}): {outcome}")


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
