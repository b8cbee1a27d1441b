"""`compllm eval --questions FILE`: a set of one's own, asked of the whole path.

Reports how many answers are as expected, what the plans and routes look like, and how long answers
take. known_questions.py reads the file and says which answers are right.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compllm.cli.console import print_json, print_table, progress, say
from compllm.cli.known_questions import Item, read_items
from compllm.cli.shared import connected, read_settings, with_server
from compllm.errors import ConfigError, DeadlineExceeded, QueryError
from compllm.plural import counted

if TYPE_CHECKING:
    from compllm.config import Config
    from compllm.pipeline import CompLLM
    from compllm.types import Answer

_MOST_WRONG = 20  # wrong answers that the page shows


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its answer; None where it failed, with the reason."""

    item: Item
    answer: Answer | None
    error: str = ""

    @property
    def text(self) -> str:
        return self.answer.text.strip() if self.answer else ""

    @property
    def is_right(self) -> bool:
        return self.item.is_right(self.text)


Keep = Callable[[Asked], None]


def evaluate(
    questions: Path,
    config: Path | None,
    url: str | None,
    at_once: int,
    out: Path | None,
    *,
    is_json: bool,
) -> None:
    """The command. Raises ConfigError for a file that cannot be read or written, ServerError."""
    items = read_items(questions)
    settings = with_server(read_settings(config, url))[0]
    with _kept(out) as keep:
        asked = asyncio.run(_ask_all(items, settings, at_once, keep))
    summary = summarise(asked)
    if is_json:
        return print_json({**summary, "lines": [_record(each) for each in asked]})
    _show(asked, summary)


@contextmanager
def _kept(out: Path | None) -> Iterator[Keep]:
    """Yields what writes a line of an answer at once, into a file that becomes `out` at the end."""
    if out is None:
        yield lambda asked: None
        return
    partial = out.with_name(f"{out.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:

            def keep(asked: Asked) -> None:
                file.write(json.dumps(_record(asked), ensure_ascii=False) + "\n")
                file.flush()

            try:
                yield keep
            except BaseException:
                say(f"the answers so far are in {partial}")
                raise
        partial.replace(out)
    except OSError as error:
        raise ConfigError(f"cannot write {out}: {error.strerror}") from error


async def _ask_all(
    items: Sequence[Item], settings: Config, at_once: int, keep: Keep
) -> list[Asked]:
    from rich.console import Console

    turns = asyncio.Semaphore(at_once)
    with progress(len(items)) as advance:
        async with await connected(settings, Console(stderr=True)) as llm:

            async def ask(item: Item) -> Asked:
                async with turns:
                    asked = await _ask(llm, item)
                keep(asked)
                advance(1)
                return asked

            return list(await asyncio.gather(*map(ask, items)))


async def _ask(llm: CompLLM, item: Item) -> Asked:
    """A question that fails is one without an answer. A server that is gone ends the command."""
    from compllm.types import Query

    try:
        answer = await llm.ask(Query(item.question))
    except (DeadlineExceeded, QueryError) as error:
        return Asked(item, None, str(error))
    return Asked(item, answer, answer.error or "")


def summarise(asked: Sequence[Asked]) -> dict[str, Any]:
    """Counts of answers, plans and routes, and the times in seconds."""
    answers = [each.answer for each in asked if each.answer is not None]
    known = [each for each in asked if each.item.expected]
    nodes = Counter(node.expert for answer in answers for node in answer.nodes)
    return {
        "questions": len(asked),
        "known": len(known),
        "right": sum(each.is_right for each in known),
        "failed": sum(bool(each.error) for each in asked),
        "low_confidence": sum(answer.is_low_confidence for answer in answers),
        "plans": {
            "sub_queries": dict(sorted(Counter(len(a.plan.sub_queries) for a in answers).items())),
            "without_a_plan": sum(answer.plan.is_direct for answer in answers),
            "fallbacks": sum(answer.plan.is_fallback for answer in answers),
        },
        "routes": dict(nodes.most_common()),
        "seconds": {
            "first_token": _times([answer.timings.first_token_s for answer in answers]),
            "whole": _times([answer.timings.total_s for answer in answers]),
        },
    }


def _times(seconds: Sequence[float]) -> dict[str, float] | None:
    import numpy as np

    if not seconds:
        return None
    p50, p95 = np.percentile(seconds, (50, 95))
    return {"p50": round(float(p50), 4), "p95": round(float(p95), 4)}


def _record(asked: Asked) -> dict[str, Any]:
    answer = asked.answer
    record: dict[str, Any] = {"question": asked.item.question, "answer": asked.text}
    if asked.item.expected:
        record |= {"accept": asked.item.expected, "is_right": asked.is_right}
    if asked.error:
        record["error"] = asked.error
    if answer is not None:
        record |= {
            "steps": [sub_query.text for sub_query in answer.plan.sub_queries],
            "experts": [node.expert for node in answer.nodes],
            "confidence": answer.confidence,
            "seconds": round(answer.timings.total_s, 4),
        }
    return record


def _show(asked: Sequence[Asked], summary: dict[str, Any]) -> None:
    wrong = [each for each in asked if each.error or (each.item.expected and not each.is_right)]
    if wrong:
        rows = [
            (each.item.question, each.error or each.text, each.item.shown)
            for each in wrong[:_MOST_WRONG]
        ]
        print_table(("question", "answer", "expected"), rows)
        if len(wrong) > _MOST_WRONG:
            print(f"and {len(wrong) - _MOST_WRONG} more: --out FILE has them all")
    print(f"{counted(summary['questions'], 'question')}, {summary['failed']} failed")
    for name, text in _lines(summary):
        print(f"{name:12}{text}")


def _lines(summary: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if summary["known"]:
        share = summary["right"] / summary["known"]
        yield "right", f"{summary['right']} of {summary['known']} ({share:.0%})"
    yield "low", f"{summary['low_confidence']} marked as low in confidence"
    plans = summary["plans"]
    steps = ", ".join(f"{count} of {size}" for size, count in plans["sub_queries"].items())
    yield "plans", f"by sub-queries: {steps or '-'}"
    yield "", f"{plans['without_a_plan']} without a plan, {plans['fallbacks']} fallbacks"
    routes = ", ".join(f"{name} {count}" for name, count in summary["routes"].items())
    yield "routes", routes or "-"
    for name, times in summary["seconds"].items():
        if times:
            yield name.replace("_", " "), f"p50 {times['p50']:.2f} s, p95 {times['p95']:.2f} s"
