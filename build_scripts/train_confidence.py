"""Measure how sure answers are: log-probabilities against right and wrong -> confidence.json.

    python build_scripts/train_confidence.py --questions FILE ... [--examples EXAMPLES]
    python build_scripts/train_confidence.py --examples EXAMPLES --risk 0.03   # fits them again

Asks the running server (`compllm up`) every question of the files, withholds nothing, and fits how
often answers with such log-probabilities are right: for the experts' answers and for the base's.

Two thresholds are chosen on questions that the fit has not seen. Below the first an expert's answer
becomes "I do not know": it is the lowest that keeps --risk of whole answers. Below the second the
base's answer is marked: it is the lowest that marks --marked of its errors. Run it after the
adapters, the router and the gate: it belongs to them. The questions must not be those that a result
is reported on.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.metadata
import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from compllm.build_scripts.calibration.examples import Example, collect
from compllm.build_scripts.calibration.fit import choose_mark, figures, fit, threshold_of_answers
from compllm.build_scripts.calibration.questions import Known, read_known
from compllm.build_scripts.staging import run_script, say
from compllm.confidence import Calibration, save_calibration
from compllm.config import AnswerConfig, load_config
from compllm.errors import ConfigError
from compllm.paths import resource_dir
from compllm.pipeline import CompLLM


async def ask(questions: Sequence[Known], num_at_once: int) -> list[Example]:
    """Every question, of the running server with the user's settings."""
    config = replace(load_config(), answer=AnswerConfig(abstain="never"))

    def progress(done: int, total: int) -> None:
        if done % 100 == 0 or done == total:
            say(f"  {done} of {total}")

    async with await CompLLM.connect(config) as llm:
        return await collect(llm, questions, num_at_once=num_at_once, progress=progress)


def make(
    examples: Sequence[Example], risk: float, marked: float, seed: int
) -> tuple[Calibration, dict[str, Any]]:
    """Raises ConfigError where there are too few examples of experts or of the base."""
    experts = [example for example in examples if example.source == "expert"]
    base = [example for example in examples if example.source == "base"]
    expert, sure, right = fit(experts, seed)
    of_base, base_sure, base_right = fit(base, seed)
    threshold = threshold_of_answers(experts, sure, risk)
    record = {"expert": figures(sure, right), "base": figures(base_sure, base_right)}
    given = sure >= threshold
    record["expert"]["coverage"] = round(float(given.mean()), 4)
    mark = choose_mark(base_sure, base_right, marked)
    is_marked = base_sure < mark
    record["base"]["marked"] = round(float(is_marked.mean()), 4)
    record["base"]["wrong_marked"] = round(float(is_marked[~base_right].mean()), 4)
    record["base"]["right_marked"] = round(float(is_marked[base_right].mean()), 4)
    return Calibration(expert, of_base, threshold, mark), record


def run(arguments: argparse.Namespace) -> None:
    examples, data = _examples(arguments)
    calibration, record = make(examples, arguments.risk, arguments.marked, arguments.seed)
    record |= {
        "risk_wanted": arguments.risk,
        "marked_wanted": arguments.marked,
        "questions": dict(sorted(Counter(kind for kind, _ in _asked(examples)).items())),
        "data": {
            f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
            for path in data
        },
        "seed": arguments.seed,
        "scikit-learn": importlib.metadata.version("scikit-learn"),
    }
    calibration = replace(calibration, record=record)
    save_calibration(arguments.out, calibration)
    print(json.dumps({"path": str(arguments.out), "min_confidence": calibration.min_confidence}))
    print(json.dumps({name: record[name] for name in ("expert", "base")}))


def _examples(arguments: argparse.Namespace) -> tuple[list[Example], list[Path]]:
    """What to fit on, and the files that it comes from. Raises ConfigError."""
    if arguments.questions:
        questions = [known for path in arguments.questions for known in read_known(path)]
        say(f"asking {len(questions)} questions")
        examples = asyncio.run(ask(questions, arguments.at_once))
        if arguments.examples:
            _write_examples(arguments.examples, examples)
        return examples, arguments.questions
    if arguments.examples:
        return read_examples(arguments.examples), [arguments.examples]
    raise ConfigError(
        "nothing to fit on: give --questions FILE to ask the running server, or --examples FILE of "
        "a run before"
    )


def _asked(examples: Sequence[Example]) -> set[tuple[str, str]]:
    """Kind and text of the questions that gave an example."""
    return {(example.kind, example.question) for example in examples}


def read_examples(path: Path) -> list[Example]:
    """What an earlier run wrote. Raises ConfigError, which names the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}: make it with --questions FILE --examples FILE"
        ) from error
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            found.append(Example(**row | {"features": tuple(map(float, row["features"]))}))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}, line {number} is no example of train_confidence: {error}: make the file "
                "with --questions FILE --examples FILE"
            ) from error
    return found


def _write_examples(path: Path, examples: Sequence[Example]) -> None:
    rows = ({name: getattr(each, name) for name in each.__slots__} for each in examples)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _parser(prog: str | None = None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog, description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--questions", type=Path, nargs="+", default=[], metavar="FILE",
        help="questions with answers, JSON Lines: question and accept; or a composite's or an "
        "expert's set of make_datasets.py")  # fmt: skip
    add("--risk", type=float, default=0.05, metavar="SHARE",
        help="wanted share of wrong ones among the experts' answers that are given "
        "(default: %(default)s)")  # fmt: skip
    add("--marked", type=float, default=0.85, metavar="SHARE",
        help="wanted share of the base's wrong answers that are marked low in confidence "
        "(default: %(default)s)")  # fmt: skip
    add("--at-once", type=int, default=8, metavar="N",
        help="questions asked at the same time (default: %(default)s)")  # fmt: skip
    add("--out", type=Path, default=None, metavar="FILE", help="default: engines/confidence.json")
    add("--examples", type=Path, default=None, metavar="FILE",
        help="write what was fitted on, JSON Lines; without --questions: fit this file again, with "
        "another --risk for instance")  # fmt: skip
    add("--seed", type=int, default=0, help="of the folds (default: %(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None, prog: str | None = None) -> int:
    parsed = _parser(prog).parse_args(arguments)
    parsed.out = parsed.out or resource_dir("engines") / "confidence.json"
    return run_script(lambda: run(parsed))


if __name__ == "__main__":
    sys.exit(main())
