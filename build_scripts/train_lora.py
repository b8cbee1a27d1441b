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

import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, ClassVar

from compllm.build_scripts.fetch_base import ensure_base
from compllm.build_scripts.manifest import weights_sha256
from compllm.build_scripts.staging import Terminated, run_script, say
from compllm.build_scripts.training.options import OPTIONS, make_parser
from compllm.build_scripts.training.settings import TrainSettings
from compllm.build_scripts.training.sweep import parse_grid, sweep
from compllm.errors import ConfigError
from compllm.formats.json_files import read_json
from compllm.paths import home_dir
from compllm.prompts import TEMPLATES

if TYPE_CHECKING:
    from compllm.build_scripts.training.checkpoint import State
    from compllm.build_scripts.training.examples import Example


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

    from compllm.build_scripts.training.adapter import load_trainable, start_from, trainable
    from compllm.build_scripts.training.examples import data_hashes
    from compllm.build_scripts.training.loop import Run, train
    from compllm.build_scripts.training.packed_model import PackedModel

    if num_threads:
        torch.set_num_threads(num_threads)
    device = _device()
    train_set, validation_set, num_long = _read_sets(
        datasets, settings, checkpoint, template, times or {}
    )
    hashes, base_sha256 = data_hashes(datasets), weights_sha256(checkpoint)
    model = load_trainable(checkpoint, settings, device)
    begun = {
        **({"start": start_from(model, start, settings, checkpoint)} if start else {}),
        **({"times": dict(times)} if times else {}),
    }
    path = work / "state.pt"
    state = _state(path, settings.fingerprint(hashes, base_sha256, template, begun), is_restart)
    say(
        f"{len(train_set)} training and {len(validation_set)} validation examples"
        f"{f' ({num_long} too long were left out)' if num_long else ''}, on {device}"
    )
    factors = trainable(model)
    run = Run(PackedModel(model), factors, train_set, validation_set, settings, device, path)
    with _stopping() as is_stopped:
        is_whole = train(run, state, is_stopped)
    record = {
        "settings": settings.as_dict(),
        "template": template,
        **begun,
        "data": hashes,
        "num_examples": {"train": len(train_set), "too_long": num_long},
        **_course(state, device),
    }
    return _write(out, model, state, checkpoint, record, is_whole=is_whole)


def _read_sets(
    datasets: Sequence[Path],
    settings: TrainSettings,
    checkpoint: Path,
    template: str,
    times: Mapping[str, int],
) -> tuple[list[Example], list[Example], int]:
    """Training and validation examples, and how many of training were too long. Raises
    ConfigError."""
    from compllm.backends.tokenizer import Tokenizer
    from compllm.build_scripts.training.batches import repeated
    from compllm.build_scripts.training.examples import load_examples

    read = partial(
        load_examples,
        datasets,
        tokenizer=Tokenizer.from_dir(checkpoint),
        max_tokens=settings.max_tokens,
        template=TEMPLATES[template],
    )
    train_set, num_long = read("train")
    validation_set, _ = read("validation")
    return repeated(train_set, times), validation_set, num_long


def _state(path: Path, fingerprint: str, is_restart: bool) -> State:
    """The state of the run that was stopped, else a new one. Raises ConfigError for another run's
    state."""
    from compllm.build_scripts.training.checkpoint import State, load_state

    if is_restart:
        path.unlink(missing_ok=True)
    state = load_state(path, fingerprint)
    if state is None:
        return State(fingerprint)
    say(f"continuing at step {state.step}")
    return state


def _course(state: State, device: Any) -> dict[str, Any]:
    """What the manifest says of how the training went."""
    return {
        "steps": state.step,
        "tokens": state.num_tokens,
        "tokens_computed": state.num_nodes,
        "seconds": round(state.seconds, 1),
        "cpu_seconds": round(state.cpu_seconds, 1),
        "device": str(device),
        "best": state.curve[state.best_place] if state.best else None,
        "curve": [{k: v for k, v in point.items() if k != "by_kind"} for point in state.curve],
    }


def _write(
    out: Path,
    model: Any,
    state: State,
    checkpoint: Path,
    record: dict[str, Any],
    *,
    is_whole: bool,
) -> dict[str, Any] | None:
    """The adapter and its manifest: of a whole run into `out`, else into `unfinished_dir(out)`."""
    from compllm.build_scripts.training.adapter import write_adapter

    unfinished = unfinished_dir(out)
    if not is_whole:
        kept = {**record, "is_unfinished": True}
        best_factors = state.best or state.adapter
        write_adapter(unfinished, model, best_factors, checkpoint, kept, name=out.resolve().name)
        say(f"stopped at step {state.step}; the same command continues")
        say(f"the best adapter so far is in {unfinished} ({_validated(record['best'])})")
        return None
    manifest = write_adapter(out, model, state.best, checkpoint, record)
    shutil.rmtree(unfinished, ignore_errors=True)
    say(f"adapter ready: {out} ({_validated(record['best'])})")
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

    by: ClassVar[type[KeyboardInterrupt]] = KeyboardInterrupt  # what ended the last run

    def __enter__(self) -> Any:
        self._is_stopped = False
        self._previous = {
            each: signal.signal(each, self._stop) for each in (signal.SIGTERM, signal.SIGINT)
        }
        return lambda: self._is_stopped

    def __exit__(self, *_: object) -> None:
        for each, handler in self._previous.items():
            signal.signal(each, handler)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        _stopping.by = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self._is_stopped:
            raise _stopping.by
        self._is_stopped = True
        say("stopping after this step")


def _device() -> Any:
    """The torch.device to train on."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    parser = make_parser(prog)
    options = parser.parse_args(arguments)
    settings = TrainSettings(**{name: getattr(options, name) for name in OPTIONS.values()})

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
            grid = parse_grid(options.sweep, OPTIONS)
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
            raise _stopping.by

    return run_script(work)


if __name__ == "__main__":
    sys.exit(main())
