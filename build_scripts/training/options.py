"""The options of train_lora.py."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path

from compllm.build_scripts.training.settings import TrainSettings
from compllm.prompts import TEMPLATES

OPTIONS = {  # option -> field of TrainSettings
    "lr": "learning_rate",
    "rank": "rank",
    "alpha": "alpha",
    "first-layer": "first_layer",
    "batch-size": "batch_size",
    "group-size": "group_size",
    "epochs": "epochs",
    "max-minutes": "max_minutes",
    "warmup": "warmup_steps",
    "weight-decay": "weight_decay",
    "max-tokens": "max_tokens",
    "evaluations": "num_evaluations",
    "validation-tokens": "validation_tokens",
    "patience": "patience",
    "seed": "seed",
}


_HELP = {  # what it is, with its unit; the default is added
    "lr": "learning rate at its highest, after the warm-up; it then falls to 0 as a cosine",
    "rank": "rank of the LoRA factors",
    "alpha": "LoRA's alpha: the adapter counts alpha / rank times; 0 is twice the rank",
    "first-layer": "lowest layer that gets factors; the layers below stay as they are",
    "batch-size": "examples of one step",
    "group-size": "examples of a batch that begin alike, so that shared tokens are computed once",
    "epochs": "passes over the training examples; may be a fraction",
    "max-minutes": "minutes of training by the clock, evaluations and earlier parts of a continued "
    "run included; the learning rate falls to 0 by then; 0 is no limit",
    "warmup": "steps in which the learning rate rises to --lr",
    "weight-decay": "AdamW's weight decay of the factors",
    "max-tokens": "tokens of an example; longer ones are left out",
    "evaluations": "validations over the whole run; the best one's adapter is written",
    "validation-tokens": "tokens of the validation examples that an evaluation reads",
    "patience": "evaluations without a better one after which the run ends",
    "seed": "of the first factors, the order of examples and the choice for validation",
}


def make_parser(prog: str | None) -> argparse.ArgumentParser:
    """The options of the command; `prog` is its name in the help."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train one LoRA adapter. Ctrl-C ends the run after the step under way and "
        "keeps the best adapter so far in OUT-unfinished; the same command continues the run.",
    )
    _add_sources(parser)
    _add_run(parser)
    _add_settings(parser)
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    """What is trained, on what, and where it goes."""
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--dataset",
        type=Path,
        metavar="DIR",
        help="folder of train.jsonl and validation.jsonl, as make_datasets.py writes them",
    )
    data.add_argument(
        "--union", type=Path, nargs="+", metavar="DIR", help="several such folders, as one data set"
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="where the adapter goes; not with --sweep")
    add(
        "--sweep",
        nargs="+",
        metavar="OPTION=V,V",
        help="compare runs over these values and write no adapter: --sweep lr=5e-4,1e-3",
    )
    add(
        "--like",
        type=Path,
        nargs="+",
        metavar="ADAPTER",
        help="in place of --rank: as many parameters as all of these adapters have",
    )
    add("--start", type=Path, metavar="ADAPTER", help="go on from this adapter, not from nothing")
    add(
        "--times",
        nargs="+",
        default=[],
        metavar="KIND=N",
        help="show the examples of this kind N times an epoch; default: once",
    )
    add("--checkpoint", type=Path, metavar="DIR", help="base model; default: the fetched base")
    add(
        "--template",
        choices=sorted(TEMPLATES),
        default="chatml",
        help="chat template of the base; default: chatml",
    )


def _add_run(parser: argparse.ArgumentParser) -> None:
    """How this machine trains."""
    add = parser.add_argument
    add(
        "--work",
        type=Path,
        metavar="DIR",
        help="where the state of the run is kept; default: in $COMPLLM_HOME/training",
    )
    add(
        "--precision",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the frozen base and of the products; auto is bfloat16 on a GPU and on a processor "
        "with AMX, float32 elsewhere; default: auto",
    )
    add("--restart", action="store_true", help="forget the state of an earlier run")
    add(
        "--threads",
        type=int,
        default=0,
        metavar="N",
        help="threads of the CPU, 0 for all; two runs of one thread each beat one of two; "
        "default: 0",
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    defaults = {field.name: field.default for field in fields(TrainSettings)}
    for option, name in OPTIONS.items():
        default = defaults[name]
        kind = type(default)
        parser.add_argument(
            f"--{option}",
            dest=name,
            type=kind,
            default=default,
            metavar="N" if kind is int else "X",
            help=f"{_HELP[option]}; default: {default:g}",
        )
