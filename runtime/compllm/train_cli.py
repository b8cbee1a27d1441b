"""`compllm train`: build_scripts/train_lora.py under the command's name.

Options and output are the script's, described by `compllm train --help`.
"""

from __future__ import annotations

import typer

# Everything is the script's, --help as well.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def train(context: typer.Context) -> None:
    """Train one LoRA adapter: an expert, the generator or the aggregator."""
    from compllm.build_scripts.train_lora import main

    try:
        status = main(context.args, prog="compllm train")
    except SystemExit as end:  # argparse has told why, or printed the help
        status = int(end.code or 0)
    raise typer.Exit(status)
