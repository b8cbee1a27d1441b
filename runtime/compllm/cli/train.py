"""`compllm train NAME`: the training scripts under the command's name.

Options and output are the scripts', described by `compllm train NAME --help`. Without a name it is
`lora`, build_scripts/train_lora.py.
"""

from __future__ import annotations

import importlib

import typer

from compllm.cli.console import STOPPED
from compllm.errors import ConfigError

# Everything is the script's, --help as well.
PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

_SCRIPTS = {
    "lora": "train_lora",
    "router": "train_router",
    "gate": "train_gate",
    "confidence": "train_confidence",
    "generator": "train_role",
    "aggregator": "train_role",
}
_HELP = """\
usage: compllm train [lora] ...   a LoRA adapter: an expert, the generator or the aggregator
       compllm train router ...   the router: which expert answers, and when none is near
       compllm train gate ...     the gate: which questions need no plan
       compllm train generator | aggregator ...   those of a project, for its base
       compllm train confidence ...   how sure an answer is, from its tokens' log-probabilities

Each prints its options: compllm train router --help. Those of the first:
"""


def train(context: typer.Context) -> None:
    """Train an adapter (lora), the router or the gate."""
    name, prog, arguments = "lora", "compllm train", context.args
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        if name not in _SCRIPTS:
            raise ConfigError(f"no training {name!r}: there are {', '.join(_SCRIPTS)}")
        if _SCRIPTS[name] == "train_role":
            arguments = [name, *arguments]  # one script for both
        else:
            prog = f"{prog} {name}"
    elif arguments in (["--help"], ["-h"]):
        print(_HELP)
    script = importlib.import_module(f"compllm.build_scripts.{_SCRIPTS[name]}")
    try:
        status: int = script.main(arguments, prog=prog)
    except SystemExit as end:  # argparse has said why, or printed the help
        status = int(end.code or 0)
    if status in STOPPED:  # the script has said so
        raise SystemExit(status)
    raise typer.Exit(status)
