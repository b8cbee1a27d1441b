"""Is the confidence of answers worth anything? The test sets asked of the system as shipped.

    python -m benchmarks.accuracy.eval_confidence --datasets DIR [--count 200]

Asks the first questions of the -P, -All and single-question test sets (`make_datasets.py`) of the
running server with the default settings. A question counts as given when its answer withholds
nothing and is not marked low in confidence. Writes eval_confidence.json and the risk-coverage
curve, eval_confidence.png: of the answers at least this sure, the share that is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.accuracy.metrics import is_exact
from benchmarks.report import Report, Row
from benchmarks.report import add_arguments as add_report_arguments
from compllm.errors import CompllmError
from compllm.paths import home_dir

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTE = (
    "Right: exact match with the gold answer. Given: nothing withheld and not low in confidence. "
    "risk: share of wrong ones among those given. 'kept': right ones that are given."
)
SETS = ("p", "all", "chemistry", "biology", "mathematics")
_QUICK = 4


@dataclass(frozen=True, slots=True)
class Asked:
    """One question of a set, with what became of it."""

    set: str
    confidence: float
    is_right: bool
    is_given: bool


def read_set(folder: Path, name: str, count: int) -> list[tuple[str, str]]:
    """(question, gold answer) of the first questions that stand alone."""
    lines = (folder / name / "test.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    alone = [record for record in records if "steps" in record or not record["parents"]]
    return [(record["question"], record["answer"]) for record in alone[:count]]


async def ask_sets(
    url: str, sets: dict[str, list[tuple[str, str]]], *, abstain: str
) -> list[Asked]:
    from compllm.config import load_config
    from compllm.pipeline import CompLLM

    config = load_config(overrides={"server.url": url, "answer.abstain": abstain})
    slots = asyncio.Semaphore(8)
    async with await CompLLM.connect(config) as llm:

        async def ask(name: str, question: str, gold: str) -> Asked:
            async with slots:
                try:
                    answer = await llm.ask(question)
                except CompllmError:
                    return Asked(name, 0.0, False, False)
            sure = answer.confidence if answer.confidence is not None else 0.0
            return Asked(name, sure, is_exact(answer.text, gold), not answer.is_low_confidence)

        tasks = [ask(name, *pair) for name, pairs in sets.items() for pair in pairs]
        return list(await asyncio.gather(*tasks))


def row(asked: Sequence[Asked]) -> Row:
    given = [each for each in asked if each.is_given]
    num_right = sum(each.is_right for each in asked)
    num_kept = sum(each.is_right for each in given)
    return {
        "asked": len(asked),
        "right": round(num_right / len(asked), 4),
        "given": round(len(given) / len(asked), 4),
        "risk": round(1 - num_kept / len(given), 4) if given else None,
        "kept": round(num_kept / num_right, 4) if num_right else None,
    }


def curve(asked: Sequence[Asked]) -> list[tuple[float, float]]:
    """(coverage, risk) from the surest answer down."""
    ordered = sorted(asked, key=lambda each: -each.confidence)
    points, num_wrong = [], 0
    for index, each in enumerate(ordered, start=1):
        num_wrong += not each.is_right
        points.append((index / len(ordered), num_wrong / index))
    return points


def plot(groups: Mapping[str, Sequence[Asked]]) -> Callable[[Axes, Mapping[str, list[Row]]], None]:
    def draw(axes: Axes, _: Mapping[str, list[Row]]) -> None:
        for name, asked in groups.items():
            axes.plot(*zip(*curve(asked), strict=True), label=name)
        axes.axhline(0.05, color="grey", linewidth=0.8, linestyle=":")
        axes.set(xlabel="coverage: share of the questions answered", ylabel="risk: wrong ones")
        axes.set_ylim(0, 0.3)
        axes.legend()

    return draw


def _evaluate(arguments: argparse.Namespace) -> None:
    from compllm.server import triton_server

    count = _QUICK if arguments.quick else arguments.count
    sets = {name: read_set(arguments.datasets, name, count) for name in SETS}
    report = Report("eval_confidence", arguments, ("openvino", "nvidia-pytriton"), NOTE)
    with triton_server.running(arguments.engine) as server:
        asked = asyncio.run(ask_sets(server.grpc_url, sets, abstain="never"))
    groups = {name: [each for each in asked if each.set == name] for name in SETS}
    for name, group in (*groups.items(), ("all sets", asked)):
        report.add("risk", set=name, **row(group))
    report.summary["curve"] = [[round(x, 4), round(y, 4)] for x, y in curve(asked)[::10]]
    report.finish(plot({**groups, "all sets": asked}))


def main(argv: Sequence[str] | None = None) -> int:
    from compllm.build_scripts.staging import run_script

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_report_arguments(parser)
    add = parser.add_argument
    add("--datasets", type=Path, default=home_dir() / "datasets", metavar="DIR",
        help="of make_datasets.py (default: where it writes)")  # fmt: skip
    add("--count", type=int, default=200, metavar="N",
        help="questions of each set, in the order of the file (default: %(default)s)")  # fmt: skip
    add("--engine", type=Path, metavar="DIR", help="embedded engine; default: of compllm up")
    arguments = parser.parse_args(argv)
    return run_script(lambda: _evaluate(arguments))


if __name__ == "__main__":
    sys.exit(main())
