"""`compllm init`: a project folder with settings and catalogue in one file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The folder; it is made where it is missing.")
    ],
    is_empty: Annotated[
        bool, typer.Option("--empty", help="Without the shipped experts, generator and aggregator.")
    ] = False,
) -> None:
    """Make a project folder: DIR/compllm.toml, with every setting and the catalogue.

    Commands that run in it, or below it, take that file. The shipped experts are in it where they
    are made for the base in use.
    """
    from compllm.build_scripts.convert_encoder import ensure_ir
    from compllm.build_scripts.fetch_base import ensure_encoder
    from compllm.build_scripts.own.bases import fits_shipped, template_in_use
    from compllm.build_scripts.own.project import check_absent, make_project
    from compllm.routing.embed import SentenceEncoder

    check_absent(folder)
    template, has_shipped = template_in_use(), not is_empty and fits_shipped()
    directory = ensure_encoder()
    ensure_ir(directory)
    encoder = asyncio.run(SentenceEncoder.load(directory)).id
    path = make_project(folder, encoder, template, has_shipped=has_shipped)
    print(f"project  {path}")
    print(f"experts  {'the shipped ones' if has_shipped else 'none yet'}")
    print(f"next     cd {folder}; compllm expert add NAME --adapter DIR --examples FILE")
