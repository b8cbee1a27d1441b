"""Train one LoRA adapter (generator, aggregator or expert) from a data set, on a CPU or a GPU.

    python build_scripts/train_lora.py --dataset DIR/chemistry --out engines/adapters/chemistry
    python build_scripts/train_lora.py --dataset DIR/generator --out ... --batch-size 8
    python build_scripts/train_lora.py --dataset DIR/chemistry --out ... --start ADAPTER --lr 3e-4 \
        --times from_number=4
    python build_scripts/train_lora.py --union DIR/chemistry DIR/all --like ADAPTER ... --out ...
    python build_scripts/train_lora.py --dataset DIR/chemistry --sweep lr=5e-4,1e-3 --max-minutes 5

Reads train.jsonl and validation.jsonl of make_datasets.py; writes a PEFT directory with a manifest,
which build_openvino.py takes. A run that is stopped or killed continues when it is started again; a
run that is stopped also writes the best adapter so far, into OUT-unfinished.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

from compllm.build_scripts.fetch_base import ensure_base
from compllm.build_scripts.manifest import weights_sha256
from compllm.build_scripts.staging import run_script, say
from compllm.build_scripts.training.settings import TrainSettings
from compllm.build_scripts.training.sweep import parse_grid, sweep
from compllm.errors import ConfigError
from compllm.formats.json_files import read_json
from compllm.paths import home_dir
from compllm.prompts import TEMPLATES


def train_adapter(
    datasets: Sequence[Path],
    out: Path,
    settings: TrainSettings,
    *,
    checkpoint: Path,
    template: str = "chatml",
    work: Path,
    is_restart: bool = False,
    num_threads: int = 0,
    start: Path | None = None,
    times: Mapping[str, int] | None = None,
) -> dict[str, Any] | None:
    """Train and write `out`; returns its manifest, or None when a signal stopped the run before its
    end: its state is kept in `work`, the best adapter so far in `unfinished_dir(out)`.

    `start`: go on from this adapter. `times`: kind of example -> how often an epoch holds it; once
    where it says nothing.

    Raises ConfigError for data, settings or a checkpoint that do not fit.
    """
    import torch

    from compllm.backends.tokenizer import Tokenizer
    from compllm.build_scripts.training.adapter import (
        load_trainable,
        start_from,
        trainable,
        write_adapter,
    )
    from compllm.build_scripts.training.batches import repeated
    from compllm.build_scripts.training.checkpoint import State, load_state
    from compllm.build_scripts.training.examples import data_hashes, load_examples
    from compllm.build_scripts.training.loop import Run, train
    from compllm.build_scripts.training.packed_model import PackedModel

    if num_threads:
        torch.set_num_threads(num_threads)
    device = _device()
    tokenizer = Tokenizer.from_dir(checkpoint)
    chat = TEMPLATES[template]
    train_set, num_long = load_examples(
        datasets, "train", tokenizer, max_tokens=settings.max_tokens, template=chat
    )
    validation_set, _ = load_examples(
        datasets, "validation", tokenizer, max_tokens=settings.max_tokens, template=chat
    )
    train_set = repeated(train_set, times or {})
    hashes, base_sha256 = data_hashes(datasets), weights_sha256(checkpoint)
    path = work / "state.pt"
    if is_restart:
        path.unlink(missing_ok=True)
    model = load_trainable(checkpoint, settings, device)
    begun = {
        **({"start": start_from(model, start, settings, checkpoint)} if start else {}),
        **({"times": dict(times)} if times else {}),
    }
    fingerprint = settings.fingerprint(hashes, base_sha256, template, begun)
    state = load_state(path, fingerprint)
    if state is None:
        state = State(fingerprint)
    else:
        say(f"continuing at step {state.step}")
    say(
        f"{len(train_set)} training and {len(validation_set)} validation examples"
        f"{f' ({num_long} too long were left out)' if num_long else ''}, on {device}"
    )
    factors = trainable(model)
    run = Run(PackedModel(model), factors, train_set, validation_set, settings, device, path)
    with _stopping() as is_stopped:
        is_whole = train(run, state, is_stopped)
    best = state.curve[state.best_place] if state.best else None
    record = {
        "settings": settings.as_dict(),
        "template": template,
        **begun,
        "data": hashes,
        "num_examples": {"train": len(train_set), "too_long": num_long},
        "steps": state.step,
        "tokens": state.num_tokens,
        "tokens_computed": state.num_nodes,
        "seconds": round(state.seconds, 1),
        "cpu_seconds": round(state.cpu_seconds, 1),
        "device": str(device),
        "best": best,
        "curve": [{k: v for k, v in point.items() if k != "by_kind"} for point in state.curve],
    }
    unfinished = unfinished_dir(out)
    if not is_whole:
        kept = {**record, "is_unfinished": True}
        best_factors = state.best or state.adapter
        write_adapter(unfinished, model, best_factors, checkpoint, kept, name=out.resolve().name)
        say(f"stopped at step {state.step}; the same command continues")
        say(f"the best adapter so far is in {unfinished} ({_validated(best)})")
        return None
    manifest = write_adapter(out, model, state.best, checkpoint, record)
    shutil.rmtree(unfinished, ignore_errors=True)
    say(f"adapter ready: {out} ({_validated(best)})")
    return manifest


def unfinished_dir(out: Path) -> Path:
    """Where a run that was stopped puts its best adapter so far: never in the place of a whole
    one."""
    out = out.resolve()
    return out.with_name(f"{out.name}-unfinished")


def _validated(best: Mapping[str, Any] | None) -> str:
    if best is None:
        return "not validated: no evaluation has happened yet"
    return f"validation: exact {best['exact']:.1%}, loss {best['loss']:.4f}"


class _stopping:
    """SIGTERM and Ctrl-C end the run after the step under way; a second one ends it at once."""

    def __enter__(self) -> Any:
        self._is_stopped = False
        self._previous = {
            each: signal.signal(each, self._stop) for each in (signal.SIGTERM, signal.SIGINT)
        }
        return lambda: self._is_stopped

    def __exit__(self, *_: object) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def _stop(self, _signal: int, _frame: FrameType | None) -> None:
        if self._is_stopped:
            raise KeyboardInterrupt
        self._is_stopped = True
        say("stopping after this step")


def _device() -> Any:
    """The torch.device to train on."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


_OPTIONS = {  # option -> field of TrainSettings
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


def summed_rank(adapters: Sequence[Path]) -> int:
    """The rank at which one adapter has as many parameters as all of these together. Raises
    ArtefactError for a folder that holds no adapter."""
    return sum(int(read_json(folder / "adapter_config.json")["r"]) for folder in adapters)


def parse_times(given: Sequence[str]) -> dict[str, int]:
    """Of `KIND=N`. Raises ConfigError."""
    times = {}
    for text in given:
        kind, _, number = text.partition("=")
        if not kind or not number.isascii() or not number.isdigit():
            raise ConfigError(f"--times {text!r}: expected KIND=N, N a whole number from 0")
        times[kind] = int(number)
    return times


def make_parser(prog: str | None) -> argparse.ArgumentParser:
    """The options of the command; `prog` is its name in the help."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Train one LoRA adapter. Ctrl-C ends the run after the step under way and "
        "keeps the best adapter so far in OUT-unfinished; the same command continues the run.",
    )
    add = parser.add_argument
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
    defaults = {field.name: field.default for field in fields(TrainSettings)}
    for option, name in _OPTIONS.items():
        default = defaults[name]
        kind = type(default)
        add(
            f"--{option}",
            dest=name,
            type=kind,
            default=default,
            metavar="N" if kind is int else "X",
            help=f"{_HELP[option]}; default: {default:g}",
        )
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(prog)
    options = parser.parse_args(arguments)
    settings = TrainSettings(**{name: getattr(options, name) for name in _OPTIONS.values()})

    if (options.out is None) != (options.sweep is not None):
        parser.error("give --out, or --sweep, which writes no adapter")

    def work() -> None:
        from compllm.build_scripts.training.adapter import fast_precision

        is_auto = options.precision == "auto"
        precision = fast_precision(_device()) if is_auto else options.precision
        chosen = replace(settings, precision=precision)
        if options.like:
            chosen = replace(chosen, rank=summed_rank(options.like))
        datasets = options.union or [options.dataset]
        checkpoint = options.checkpoint or ensure_base()

        def train(each: TrainSettings, out: Path, place: Path) -> dict[str, Any] | None:
            return train_adapter(
                datasets,
                out,
                each,
                checkpoint=checkpoint,
                template=options.template,
                work=place,
                is_restart=options.restart,
                num_threads=options.threads,
                start=options.start,
                times=parse_times(options.times),
            )

        if options.sweep:
            grid = parse_grid(options.sweep, _OPTIONS)
            names = "-".join(folder.resolve().name for folder in datasets)
            place = options.work or home_dir() / "training" / f"sweep-{names}"
            is_whole = sweep(
                chosen,
                grid,
                lambda each, name: train(each, place / name / "adapter", place / name),
                place / "sweep.json",
            )
        else:
            place = options.work or home_dir() / "training" / options.out.resolve().name
            is_whole = train(chosen, options.out, place) is not None
        if not is_whole:
            raise KeyboardInterrupt

    return run_script(work)


if __name__ == "__main__":
    sys.exit(main())
