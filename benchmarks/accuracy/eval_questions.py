"""Is the system right more often than its base alone? A file of questions, asked of both.

    python -m benchmarks.accuracy.eval_questions --questions FILE.jsonl --label NAME [--only system]

The system is `CompLLM.ask` with its default settings; the base alone reads the whole question with
the catalogue's base text and no adapter, greedily, and may write as many tokens as a sub-query. The
server is the running one (`compllm up`) where it serves the same engine, else one of its own. The
file's format and the rule of grading are in benchmarks/accuracy/questions.py. Writes
eval_questions_NAME.json. Nothing is left out: a question that fails is a wrong answer.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.accuracy.questions import Question, is_right, is_unknown, read_questions
from benchmarks.report import Report, Row
from benchmarks.report import add_arguments as add_report_arguments
from compllm.errors import BackendError, ConfigError, DeadlineExceeded, PlanError, QueryError

if TYPE_CHECKING:
    from compllm.backend import Backend
    from compllm.pipeline import CompLLM
    from compllm.types import Answer

NOTE = (
    "Right: every part of the question has an accepted alternative in the answer, as a whole word "
    "or number. Unknown: the answer says 'I do not know'. Low: marked as of low confidence. Given: "
    "neither of the two. 'base_wrong_marked': the base is wrong there, and the system says that it "
    "does not know or marks its answer as low."
)
SIDES = ("system", "base")
_QUICK = 2  # questions of each kind
_NEVER_S = 86_400.0  # an evaluation on a busy machine must not score a time-out


@dataclass(frozen=True, slots=True)
class Reply:
    """What one side answered."""

    text: str
    is_right: bool = False
    confidence: float | None = None
    is_low: bool = False
    is_drawn: bool = False  # another plan than the generator's first was likelier
    steps: tuple[str, ...] = ()  # sub-queries, each with its expert
    error: str | None = None

    @property
    def is_marked(self) -> bool:
        """The answer admits that it may be wrong."""
        return self.is_low or is_unknown(self.text)


@dataclass(frozen=True, slots=True)
class Asked:
    """One question with its replies; a side that was not asked has none."""

    question: Question
    system: Reply | None = None
    base: Reply | None = None


Ask = Callable[[Question], Awaitable[Reply]]


def ask_system(llm: CompLLM) -> Ask:
    async def ask(question: Question) -> Reply:
        return reply_of(await llm.ask(question.question))

    return ask


def reply_of(answer: Answer) -> Reply:
    """What is kept of an answer of the path."""
    steps = zip(answer.plan.sub_queries, answer.nodes, strict=False)  # a partial one has fewer
    return Reply(
        answer.text.strip(),
        confidence=getattr(answer, "confidence", None),
        is_low=getattr(answer, "is_low_confidence", False),
        is_drawn=answer.plan.is_drawn,
        steps=tuple(f"{sub_query.text} [{node.expert}]" for sub_query, node in steps),
        error=answer.error,
    )


def ask_base(backend: Backend, llm: CompLLM) -> Ask:
    """The whole question to the base, as the path asks it for one sub-query."""
    from compllm.backend import GenerateRequest, collect
    from compllm.prompts import node_prompt
    from compllm.types import SamplingParams

    base, template = llm.catalogue.base, llm.catalogue.template
    sampling = SamplingParams(max_tokens=llm.config.limits.max_node_tokens)

    async def ask(question: Question) -> Reply:
        prompt = node_prompt(base, question.question, template=template)
        request = GenerateRequest(f"base-{question.id}", prompt, sampling, base.model)
        text, _ = await collect(backend, request)
        return Reply(text.strip())

    return ask


async def ask_all(questions: Sequence[Question], sides: dict[str, Ask]) -> list[Asked]:
    """Each question of each side, one at a time: a batch must not change an answer. A question that
    a side fails at has an empty reply with the error; a dead engine ends the evaluation."""
    from rich.progress import track

    async def reply(ask: Ask, question: Question) -> Reply:
        try:
            found = await ask(question)
        except (BackendError, DeadlineExceeded, PlanError, QueryError) as error:
            return Reply("", error=str(error))
        return replace(found, is_right=is_right(found.text, question))

    asked = []
    for question in track(questions, disable=not sys.stderr.isatty()):
        replies = {side: await reply(ask, question) for side, ask in sides.items()}
        asked.append(Asked(question, replies.get("system"), replies.get("base")))
    return asked


def fill(report: Report, asked: Sequence[Asked]) -> None:
    """The tables by kind with a line for all; in the summary every question with its answers, which
    are too long for the cells of a table."""
    kinds = list(dict.fromkeys(each.question.kind for each in asked))
    groups = {kind: [each for each in asked if each.question.kind == kind] for kind in kinds}
    for name, group in (*groups.items(), ("all", asked)):
        report.add("right", kind=name, **counts(group))
        if marks := mark_counts(group):
            report.add("marks", kind=name, **marks)
    report.summary["questions"] = [_shown(each) for each in asked]


def listed(asked: Sequence[Asked]) -> str:
    """Every question with its answers, for people."""
    lines = []
    for each in asked:
        question = each.question
        lines.append(f"{question.id} ({question.kind}) {question.question} [{question.answer}]")
        for side, reply in (("system", each.system), ("base", each.base)):
            if reply is not None:
                lines.append(f"    {side:6} {_verdict(reply)}: {_line(reply)}")
    return "\n".join(lines)


def _line(reply: Reply) -> str:
    text = " ".join(reply.text.split())
    return f"{text} (error: {reply.error})" if reply.error else text


def _verdict(reply: Reply) -> str:
    verdict = "right" if reply.is_right else "wrong"
    if reply.confidence is not None:
        verdict += f", confidence {reply.confidence:.2f}"
    return verdict + (", low" if reply.is_low else "")


def counts(asked: Sequence[Asked]) -> Row:
    """Of one kind. The columns of a side that was not asked are absent."""
    sides = {"system": [each.system for each in asked], "base": [each.base for each in asked]}
    row: Row = {"asked": len(asked)}
    for side, maybe in sides.items():
        if replies := [reply for reply in maybe if reply is not None]:
            row[f"{side}_right"] = sum(reply.is_right for reply in replies)
            row[f"{side}_unknown"] = sum(is_unknown(reply.text) for reply in replies)
            if side == "system":
                row["system_low"] = sum(reply.is_low for reply in replies)
                row["system_drawn"] = sum(reply.is_drawn for reply in replies)
    return row


def mark_counts(asked: Sequence[Asked]) -> Row:
    """What the marks are worth: wrong answers among those given without a mark, and marks among the
    questions that the base gets wrong. Empty where the system was not asked."""
    system = [each.system for each in asked if each.system is not None]
    if not system:
        return {}
    given = [reply for reply in system if not reply.is_marked]
    row: Row = {"given": len(given), "given_wrong": sum(not reply.is_right for reply in given)}
    if any(each.base for each in asked):
        hard = [e.system for e in asked if e.system and e.base and not e.base.is_right]
        row["base_wrong"] = len(hard)
        row["base_wrong_marked"] = sum(reply.is_marked for reply in hard)
    return row


def _shown(each: Asked) -> Row:
    question = each.question
    row: Row = {"id": question.id, "kind": question.kind, "question": question.question}
    row["accepted"] = question.answer
    for side, reply in (("system", each.system), ("base", each.base)):
        if reply is not None:
            row |= {side: reply.text, f"{side}_is_right": reply.is_right}
            row |= {f"{side}_error": reply.error} if reply.error else {}
    if each.system is not None:
        row |= {"confidence": each.system.confidence, "is_low": each.system.is_low}
        row["steps"] = " | ".join(each.system.steps)
    return row


def quick_part(questions: Sequence[Question]) -> list[Question]:
    """The first few of each kind, in order."""
    seen: dict[str, int] = {}
    kept = []
    for question in questions:
        seen[question.kind] = seen.get(question.kind, 0) + 1
        if seen[question.kind] <= _QUICK:
            kept.append(question)
    return kept


async def _ask_server(
    arguments: argparse.Namespace, questions: Sequence[Question], url: str
) -> list[Asked]:
    from compllm.backends.select import connect_as_set
    from compllm.config import load_config
    from compllm.pipeline import CompLLM

    endless = {f"timeouts.{name}_s": _NEVER_S for name in ("query", "plan", "node")}
    config = load_config(arguments.config, {"server.url": url, **endless})
    async with await CompLLM.connect(config) as llm:
        backend = await connect_as_set(url, config.server, llm.catalogue)
        try:
            sides = {"system": ask_system(llm), "base": ask_base(backend, llm)}
            wanted = SIDES if arguments.only == "both" else (arguments.only,)
            return await ask_all(questions, {side: sides[side] for side in wanted})
        finally:
            await backend.aclose()


def _evaluate(arguments: argparse.Namespace) -> None:
    if not re.fullmatch(r"[\w-]+", arguments.label):
        raise ConfigError(
            f"--label is {arguments.label!r}: it names a file, so use letters, digits, '-' and '_'"
        )
    questions: Sequence[Question] = read_questions(arguments.questions)
    if arguments.quick:
        questions = quick_part(questions)
    from compllm.server import triton_server

    packages = ("openvino", "nvidia-pytriton")
    report = Report(f"eval_questions_{arguments.label}", arguments, packages, NOTE)
    with triton_server.running(arguments.engine) as server:
        asked = asyncio.run(_ask_server(arguments, questions, server.grpc_url))
    fill(report, asked)
    print(listed(asked))
    report.finish()


def main(argv: Sequence[str] | None = None) -> int:
    from compllm.build_scripts.staging import run_script

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_report_arguments(parser)
    add = parser.add_argument
    add("--questions", type=Path, required=True, metavar="FILE", help="one JSON object a line")
    add("--label", required=True, metavar="NAME", help="of the result file")
    add("--only", choices=(*SIDES, "both"), default="both", help="which side is asked")
    add("--config", type=Path, metavar="FILE", help="settings of the system; default: none")
    add("--engine", type=Path, metavar="DIR", help="embedded engine; default: of compllm up")
    arguments = parser.parse_args(argv)
    return run_script(lambda: _evaluate(arguments))


if __name__ == "__main__":
    sys.exit(main())
