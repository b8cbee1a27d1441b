"""Does the plan-or-answer gate know which questions need no plan, and what does it gain?

    python -m benchmarks.accuracy.eval_gate [--requests FILE.jsonl] [--asked N]

Questions of the test parts, which neither the gate's weights nor its floors have seen: what it
sends straight to one expert at each floor, and the share of wrong ones among them. With --asked, N
test questions with exact answers of each kind go through the embedded engine behind Triton both
ways, planned and straight: what the gate would make of them at each floor is the accuracy / latency
curve. Writes eval_gate.json and .png, and eval_gate_engine.png.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from benchmarks.report import Report, Row
from benchmarks.report import add_arguments as add_report_arguments

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from compllm.build_scripts.gating.questions import Labelled
    from compllm.pipeline import CompLLM
    from compllm.routing.embed import Encoder
    from compllm.routing.gate import Gate

DOMAINS = ("chemistry", "biology", "mathematics")
COMPOSITES = ("p", "all")
NOTE = (
    "Held-out questions: the test parts, with wordings that the training parts do not have. sent: "
    "share that the gate sends straight to one expert. wrong: share of the sent that need a plan, "
    "if as many questions need one as need none. requests: people's requests with a label whether "
    "parallel parts are worth it, which is not quite the question here. Risks are kept by floors "
    "chosen on the validation parts; 'on' is the floor 0.5. Engine tables: each question asked "
    "planned and straight, one at a time; right: the exact answer stands in the text."
)

Scores = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with an exact answer, and what came of it either way."""

    kind: str
    score: float
    planned_ms: float
    straight_ms: float
    is_right_planned: bool
    is_right_straight: bool


def label_tables(report: Report, gate: Gate, questions: Sequence[Labelled], scores: Scores) -> None:
    """What the gate decides on the held-out questions."""
    from compllm.build_scripts.gating.fit import share_wrong
    from compllm.routing.gate import LIKELY

    labels = np.array([question.is_direct for question in questions])
    sources = np.array([question.source for question in questions])
    report.summary["num_questions"] = len(questions)
    report.summary["auroc"] = _auroc(scores[labels], scores[~labels])
    for name, floor in [*((f"{risk:g}", floor) for risk, floor in gate.floors), ("on", LIKELY)]:
        sent, wrongly = _sent(scores, labels, floor)
        row: Row = {
            "risk": name,
            "floor": floor,
            "wrong_%": _percent(share_wrong(sent, wrongly)),
            "sent_of_direct_%": _percent(sent),
            "sent_of_plan_%": _percent(wrongly),
        }
        for source in sorted(set(sources)):
            for is_direct, word in ((True, "direct"), (False, "plan")):
                mine = scores[(sources == source) & (labels == is_direct)]
                if len(mine) >= 20:
                    row[f"{source}_{word}_%"] = _percent(float((mine >= floor).mean()))
        report.add("levels", **row)
    for floor in np.linspace(0, 1, 101):
        sent, wrongly = _sent(scores, labels, float(floor))
        report.add(
            "curve",
            floor=round(float(floor), 2),
            **{
                "sent_of_direct_%": _percent(sent),
                "sent_of_plan_%": _percent(wrongly),
                "wrong_%": _percent(share_wrong(sent, wrongly)) if sent + wrongly else None,
            },
        )
    for source in sorted(set(sources)):
        mine = labels & (sources == source)
        others = ~labels & (sources == source)
        report.add(
            "sources", source=str(source), direct=int(mine.sum()), plan=int(others.sum()),
            **{"mean_score_direct": float(scores[mine].mean()) if mine.any() else None,
               "mean_score_plan": float(scores[others].mean()) if others.any() else None},
        )  # fmt: skip


def engine_tables(report: Report, gate: Gate, asked: Sequence[Asked], risk: float) -> None:
    """What the gate makes of questions whose outcome is known both ways."""
    for kind in dict.fromkeys(each.kind for each in asked):
        mine = [each for each in asked if each.kind == kind]
        report.add(
            "engine",
            kind=kind,
            num=len(mine),
            **{
                "right_planned_%": _percent(_mean(each.is_right_planned for each in mine)),
                "right_straight_%": _percent(_mean(each.is_right_straight for each in mine)),
                "planned_ms_p50": float(np.median([each.planned_ms for each in mine])),
                "straight_ms_p50": float(np.median([each.straight_ms for each in mine])),
            },
        )
    floors = {f"{floor:.2f}": float(floor) for floor in np.linspace(0, 1, 21)}
    floors["1.01"] = 1.01  # nothing is sent
    for floor in floors.values():
        report.add("engine_curve", **_at(asked, floor))
    chosen = gate.floor(risk)
    report.summary["engine"] = {
        "off": _at(asked, 1.01),
        "on": _at(asked, 0.5),
        f"auto, {risk:g}": None if chosen is None else _at(asked, chosen),
    }


def _at(asked: Sequence[Asked], floor: float) -> Row:
    sent = [each.score >= floor for each in asked]
    times = [
        each.straight_ms if is_sent else each.planned_ms
        for each, is_sent in zip(asked, sent, strict=True)
    ]
    right = [
        each.is_right_straight if is_sent else each.is_right_planned
        for each, is_sent in zip(asked, sent, strict=True)
    ]
    return {
        "floor": round(floor, 4),
        "sent_%": _percent(_mean(sent)),
        "mean_ms": _mean(times),
        "right_%": _percent(_mean(right)),
    }


def exact_questions(folder: Path, num_each: int, seed: int) -> Iterator[tuple[str, str, str]]:
    """(kind, question, answer) from the test parts: one-step questions of the domains, composites
    of -P and -All."""
    rng = random.Random(seed)

    def lines(name: str) -> list[dict[str, str]]:
        text = (folder / name / "test.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n") if line]

    for kind, names in (("single", DOMAINS), *((name, (name,)) for name in COMPOSITES)):
        rows = [row for name in names for row in lines(name)]
        if kind == "single":
            rows = [row for row in rows if not row["parents"] and "#" not in row["question"]]
        for row in rng.sample(rows, min(num_each, len(rows))):
            yield kind, row["question"], row["answer"]


async def ask_both(
    llm: CompLLM, gate: Gate, encoder: Encoder, questions: Sequence[tuple[str, str, str]]
) -> list[Asked]:
    """Each question planned and straight, alternating which is first. A question that fails one way
    counts as wrong there, with the time that it took."""
    from rich.progress import track

    from benchmarks.accuracy.metrics import contains_all
    from compllm.types import Plan, SubQuery

    async def timed(question: str, answer: str, *, is_straight: bool) -> tuple[float, bool]:
        from compllm.errors import CompllmError

        plan = Plan((SubQuery(1, question),)) if is_straight else None
        start_s = asyncio.get_running_loop().time()
        try:
            text = (await llm.ask(question, plan=plan)).text
        except CompllmError:
            text = ""
        ms = (asyncio.get_running_loop().time() - start_s) * 1000
        return ms, contains_all(text, answer)

    scores = gate.scores(await encoder.encode([question for _, question, _ in questions]))
    await timed(questions[0][1], "", is_straight=False)  # warm-up
    found = []
    for place, (kind, question, answer) in enumerate(track(questions, disable=not _is_terminal())):
        outcome = {}
        for is_straight in (bool(place % 2), not place % 2):
            outcome[is_straight] = await timed(question, answer, is_straight=is_straight)
        (planned_ms, planned), (straight_ms, straight) = outcome[False], outcome[True]
        score = float(scores[place])
        found.append(Asked(kind, score, planned_ms, straight_ms, planned, straight))
    return found


async def _measure(arguments: argparse.Namespace, gate: Gate, encoder: Encoder) -> list[Asked]:
    """On an embedded server of its own. The gate is off: the benchmark takes both ways itself."""
    from compllm.backends.triton import TritonBackend
    from compllm.catalogue import load_catalogue
    from compllm.config import load_config
    from compllm.pipeline import CompLLM
    from compllm.server import triton_server

    questions = list(exact_questions(arguments.datasets, arguments.asked, arguments.seed))
    config = load_config(overrides={"gate.mode": "off", "sharing.is_on": False})
    with triton_server.running(arguments.engine, is_shared=False) as server:
        backend = await TritonBackend.connect(server.grpc_url, None, timeout_s=60)
        async with CompLLM(backend, encoder, load_catalogue(), config) as llm:
            return await ask_both(llm, gate, encoder, questions)


def _plot_risk(axes: Axes, tables: Mapping[str, list[Row]]) -> None:
    rows = [row for row in tables["curve"] if row["wrong_%"] is not None]
    axes.plot(_column(rows, "sent_of_direct_%"), _column(rows, "wrong_%"))
    levels = tables["levels"]
    points = list(zip(_column(levels, "sent_of_direct_%"), _column(levels, "wrong_%"), strict=True))
    for row, point in zip(levels, points, strict=True):
        axes.plot(*point, "o", color="black", markersize=3)
        name = str(row["risk"]) if row["risk"] == "on" else f"risk {row['risk']}"
        axes.annotate(name, point, fontsize=7, ha="right")
    axes.set_xlabel("questions that need no plan and skip it, %")
    axes.set_ylabel("wrong among those that skip it, %")
    axes.grid(alpha=0.3)


def _plot_engine(path: Path, rows: Sequence[Row], summary: Mapping[str, Row | None]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(_column(rows, "mean_ms"), _column(rows, "right_%"), ".-")
    for name, row in summary.items():
        if row is not None:
            (x,), (y,) = _column([row], "mean_ms"), _column([row], "right_%")
            axes.annotate(name, (x, y), fontsize=8)
    axes.set_xlabel("mean time of a query, ms")
    axes.set_ylabel("right answers, %")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def _sent(scores: Scores, labels: Labels, floor: float) -> tuple[float, float]:
    """Shares sent straight on of those that need no plan, and of those that need one."""
    return float((scores[labels] >= floor).mean()), float((scores[~labels] >= floor).mean())


def _auroc(direct: Scores, others: Scores) -> float:
    from benchmarks.routing.metrics import auroc

    return auroc(direct.astype(np.float32), others.astype(np.float32))


def _mean(values: Iterator[bool] | Sequence[bool] | Sequence[float]) -> float:
    return float(np.mean(list(values)))


def _column(rows: Sequence[Row], name: str) -> list[float]:
    return [float(row[name] or 0) for row in rows]


def _percent(share: float) -> float:
    return round(100 * share, 2)


def _is_terminal() -> bool:
    return sys.stderr.isatty()


async def _evaluate(arguments: argparse.Namespace) -> None:
    from compllm.build_scripts.gating.questions import read_part
    from compllm.paths import encoder_dir
    from compllm.routing.embed import SentenceEncoder, encode_kept
    from compllm.routing.gate import default_gate, load_gate

    # Names, not folders of the machine that ran it.
    shown = {
        key: value.name if isinstance(value, Path) and key != "out" else value
        for key, value in vars(arguments).items()
    }
    packages = ("openvino", "scikit-learn")
    report = Report("eval_gate", argparse.Namespace(**shown), packages, NOTE)
    gate = load_gate(arguments.gate or default_gate())
    encoder = await SentenceEncoder.load(encoder_dir())
    questions = read_part(
        arguments.datasets / "generator", arguments.requests, "test", arguments.seed
    )
    vectors = await encode_kept(encoder, [question.text for question in questions])
    label_tables(report, gate, questions, gate.scores(vectors))
    if arguments.asked:
        asked = await _measure(arguments, gate, encoder)
        engine_tables(report, gate, asked, arguments.risk)
        if not arguments.quick:
            arguments.out.mkdir(parents=True, exist_ok=True)
            path = arguments.out / "eval_gate_engine.png"
            _plot_engine(path, report.tables["engine_curve"], report.summary["engine"])
    report.finish(_plot_risk)


def main(argv: Sequence[str] | None = None) -> int:
    from compllm.build_scripts.staging import run_script
    from compllm.paths import home_dir

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_report_arguments(parser)
    add = parser.add_argument
    default = home_dir() / "datasets"
    add("--datasets", type=Path, default=default, metavar="DIR", help="of make_datasets.py")
    add("--requests", type=Path, default=None, metavar="FILE", help="request, parallel")
    add("--gate", type=Path, default=None, metavar="FILE", help="default: the shipped one")
    add("--risk", type=float, default=0.05, help="of 'auto' in the summary")
    add("--asked", type=int, default=0, metavar="N", help="of each kind, through the engine")
    add("--engine", type=Path, default=None, metavar="DIR", help="default: of compllm up")
    arguments = parser.parse_args(argv)
    return run_script(lambda: asyncio.run(_evaluate(arguments)))


if __name__ == "__main__":
    sys.exit(main())
