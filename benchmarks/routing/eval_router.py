"""Which router is right, what does it cost, and does it hold with more experts?

    python -m benchmarks.routing.eval_router --subjects FILE.jsonl [--datasets DIR]
        [--parts three scale]

Fits every router on one half of the subject questions (with our own training questions and the
catalogue's examples) and tests on the other half; then the shipped routers on our sub-queries, the
base model's own vectors, 3 to 32 experts, paraphrases, the base model asked. Vectors, fits and
answers are kept in $COMPLLM_HOME: a killed run goes on. Writes eval_router.json, .md and two .png;
with some --parts alone, eval_router_PARTS.json and .md. `--parts speed` measures what embedding and
routing one sub-query takes: run it alone on an idle machine.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.report import Report
from benchmarks.report import add_arguments as add_report_arguments
from benchmarks.routing.bench import Bench, saves
from benchmarks.routing.parts_fitted import part_base, part_scale, part_three, part_together
from benchmarks.routing.parts_shipped import part_asked, part_own, part_paraphrase, part_speed

PARTS = {
    "three": part_three,
    "base": part_base,
    "scale": part_scale,
    "own": part_own,
    "paraphrase": part_paraphrase,
    "together": part_together,
    "speed": part_speed,
    "asked": part_asked,
}
WHOLE = tuple(name for name in PARTS if name != "speed")  # which wants the machine for itself
NOTE = (
    "Choice: in-domain questions whose own expert scores highest. AUROC: best score of in-domain "
    "questions against those for no expert; far leaves out subjects that are near an expert's or "
    "mix all (physics, medicine, statistics, ...). Own choice: the same for sub-queries of our "
    "composite test sets, each text once. means: one mean vector an expert; similarity: 16 cluster "
    "centres an expert, and 8 of its generated questions; neighbours: 20 nearest questions; "
    "logistic-experts, -topics: one softmax over experts and none, or over all topics; logistic: "
    "both, the default. In brackets: 95 % bootstrap interval over questions."
)


def _evaluate(arguments: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from benchmarks.tables import write_markdown
    from compllm.build_scripts.routing.questions import read_subjects
    from compllm.catalogue import load_catalogue
    from compllm.paths import encoder_dir
    from compllm.routing.embed import SentenceEncoder

    # A run of some parts leaves the results of a whole one alone.
    is_whole = set(arguments.parts) == set(WHOLE)
    name = "_".join(["eval_router", *([] if is_whole else arguments.parts)])
    # Files by their names: the folders are of the machine that ran it.
    shown = {
        key: value.name if isinstance(value, Path) and key != "out" else value
        for key, value in vars(arguments).items()
    }
    report = Report(name, argparse.Namespace(**shown), ("openvino", "scikit-learn", "scipy"), NOTE)
    encoder = asyncio.run(SentenceEncoder.load(encoder_dir()))
    subjects = read_subjects(arguments.subjects)
    if arguments.quick:
        from compllm.build_scripts.routing.questions import first_of_each

        subjects = tuple(first_of_each(subjects, 10))
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting")
        bench = Bench(
            arguments,
            report,
            load_catalogue(arguments.catalogue),
            encoder,
            subjects,
            lambda text: progress.update(task, description=text),
        )
        for part in arguments.parts:
            PARTS[part](bench)
    if saves(arguments):
        write_markdown(report, "Routers", arguments.out, NOTE)
    report.finish()


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """The options of the command; `prog` is its name in the help."""
    from compllm.paths import home_dir

    parser = argparse.ArgumentParser(prog=prog, description=(__doc__ or "").partition("\n")[0])
    add_report_arguments(parser)
    add = parser.add_argument
    default = home_dir() / "datasets"
    add(
        "--subjects",
        type=Path,
        required=True,
        metavar="FILE",
        help="JSON lines of {'question', 'subject'}",
    )
    add(
        "--datasets",
        type=Path,
        default=default if default.is_dir() else None,
        metavar="DIR",
        help="what make_datasets.py wrote; default: in $COMPLLM_HOME, where there is any",
    )
    add(
        "--parts",
        nargs="+",
        choices=list(PARTS),
        default=list(WHOLE),
        metavar="PART",
        help=f"tables to make, of {', '.join(PARTS)}; default: {' '.join(WHOLE)}",
    )
    _add_part_options(add)
    add(
        "--catalogue",
        type=Path,
        default=None,
        metavar="FILE",
        help="experts.toml whose routers are measured; default: the one shipped",
    )
    return parser


def _add_part_options(add: Callable[..., object]) -> None:
    """Options of single parts."""
    add(
        "--draws",
        type=int,
        default=3,
        metavar="N",
        help="random orders in which subjects become experts; default: 3",
    )
    add(
        "--base-each",
        type=int,
        nargs=2,
        default=(60, 12),
        metavar=("IN", "OUT"),
        help="questions the base model reads of an expert's subject and of others; default: 60 12",
    )
    add("--rounds", type=int, default=3, metavar="N", help="of the part speed; default: 3")
    add(
        "--engine",
        type=Path,
        default=None,
        metavar="DIR",
        help="embedded engine of the part asked; default: the one in use",
    )


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    from compllm.build_scripts.staging import run_script

    arguments = make_parser(prog).parse_args(argv)
    return run_script(lambda: _evaluate(arguments))


if __name__ == "__main__":
    sys.exit(main())
