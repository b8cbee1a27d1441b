"""`compllm base list | show | use`: the language model that all adapters share."""

from __future__ import annotations

from typing import Annotated

import typer

from compllm.cli.console import print_json, print_table
from compllm.cli.shared import JsonOption

app = typer.Typer(
    help="The base model: list the known ones, show the one in use, or use another.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_bases(is_json: JsonOption = False) -> None:
    """List the bases that are known by name, and the one in use."""
    from compllm.build_scripts.own.bases import known_bases

    found = known_bases()
    if is_json:
        rows = [
            {
                "name": each.name,
                "state": each.state,
                "path": str(each.path),
                "engine": each.engine or None,
            }
            for each in found
        ]
        return print_json({"bases": rows})
    table = [(each.name, each.state, each.engine or "not built") for each in found]
    print_table(("base", "state", "engine"), table)


@app.command()
def show(is_json: JsonOption = False) -> None:
    """Show the base in use: its shape, its chat template, its engine."""
    from compllm.build_scripts.fetch_base import ensure_base
    from compllm.build_scripts.own.bases import base_in_use, fits_shipped, template_in_use
    from compllm.formats.checkpoint import validate_checkpoint

    shape = validate_checkpoint(ensure_base())
    used = base_in_use()
    facts = {
        "base": used.name,
        "path": str(used.path),
        "layers": shape.num_layers,
        "hidden": shape.hidden,
        "vocabulary": shape.vocab,
        "template": template_in_use(),
        "engine": used.engine or None,
        "fits_shipped_adapters": fits_shipped(),
    }
    if is_json:
        return print_json(facts)
    for name, value in facts.items():
        shown = {True: "yes", False: "no", None: "not built"}.get(value, value)  # type: ignore[call-overload]
        print(f"{name.replace('_', ' '):<22} {shown}")


@app.command()
def use(
    wanted: Annotated[
        str,
        typer.Argument(
            metavar="NAME_OR_PATH",
            help="A known name, the folder of a Hugging Face checkpoint, or a GGUF file.",
        ),
    ],
    plans: Annotated[
        bool,
        typer.Option(
            help="Build its engine and report how well it plans, where no shipped generator is "
            "made for it."
        ),
    ] = True,
) -> None:
    """Use another base from now on. What was built for the one before is kept."""
    from compllm.build_scripts.own.bases import base_in_use, fits_shipped, use_base

    shape = use_base(wanted)
    print(f"base     {base_in_use().name} ({shape.num_layers} layers, hidden {shape.hidden})")
    if not fits_shipped():
        print(
            "experts  the shipped adapters are of another base and are not used: the base alone "
            "answers, and plans by examples\n"
            "next     make a project for this base with `compllm init DIR`, and add experts to it"
        )
        if plans:
            _report_plans()
    print(f"engine   {base_in_use().engine or '`compllm up` builds it'}")
    _warn_of_server()


def _report_plans() -> None:
    """The base stays in use whatever comes of it."""
    from compllm.cli.base_plans import measure_plans
    from compllm.cli.console import say
    from compllm.errors import CompllmError

    try:
        quality = measure_plans()
    except (CompllmError, OSError) as error:
        say(f"its plans could not be measured: {error}")
        return
    print(f"plans    {quality}; train a generator with `compllm train generator`")


def _warn_of_server() -> None:
    from compllm import paths
    from compllm.cli.console import say
    from compllm.errors import ServerError
    from compllm.server import triton_server

    try:
        server = triton_server.last_started()
    except ServerError:
        return
    if server is not None and server.engine_dir != str(paths.engine_dir().resolve()):
        say("the server that runs has the base before: `compllm down`, then `compllm up`")
