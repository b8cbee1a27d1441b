"""`compllm expert add | list | test | remove`: the experts of a project.

Each command takes the project of the folder it runs in, or that of --config. `add` and `remove`
report what the router does with the questions it knows, and end with what is served now.
"""

from __future__ import annotations

import typer

from compllm.cli.console import print_json, print_table
from compllm.cli.expert_add import add
from compllm.cli.expert_change import NameArgument, load_encoder, open_project, show_refit
from compllm.cli.expert_try import try_expert
from compllm.cli.shared import ConfigOption, JsonOption, read_settings

app = typer.Typer(
    help="Add an expert of your own to a project, list, test or remove one.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

app.command()(add)


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


app.command("test")(try_expert)


@app.command()
def remove(name: NameArgument, config: ConfigOption = None) -> None:
    """Remove an expert: its table, its copy of the adapter, and its part of the router."""
    from compllm.build_scripts.own import experts as own

    open_project(config)
    with own.one_at_a_time():
        change = own.plan_remove(open_project(config), name, load_encoder())
        show_refit(change.refit)
        outcome = own.apply(change)
    print(f"expert {name} removed: {outcome}")
