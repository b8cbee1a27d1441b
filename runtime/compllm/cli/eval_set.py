"""`compllm eval --questions FILE`: a set of one's own, asked of the whole path.

Reports how many answers are as expected, what the plans and routes look like, and how long answers
take. The file is that of `compllm expert test`: text with a question a line, JSON lines or CSV. A
line may have `answer`, or `accept`: a list of parts, each a list of alternatives. An answer is
right where it holds the expected text, or an alternative of every part, as whole words.
"""

from __future__ import annotations

import asyncio
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compllm.cli.console import print_json, print_table, progress, write
from compllm.cli.shared import connected, read_settings, with_server
from compllm.errors import ConfigError, DeadlineExceeded, QueryError
from compllm.plural import counted

if TYPE_CHECKING:
    from compllm.config import Config
    from compllm.pipeline import CompLLM
    from compllm.types import Answer

_MOST_WRONG = 20  # wrong answers that the page shows
_UNKNOWN = "i do not know"

Parts = tuple[tuple[str, ...], ...]  # alternatives of each part of an answer


@dataclass(frozen=True, slots=True)
class Item:
    """A question, and what its answer must hold; nothing where that is not known."""

    question: str
    expected: Parts = ()


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
        return bool(self.item.expected) and holds(self.text, self.item.expected)


def evaluate(
    questions: Path,
    config: Path | None,
    url: str | None,
    at_once: int,
    out: Path | None,
    *,
    is_json: bool,
) -> None:
    """The command. Raises ConfigError for a file that cannot be read, ServerError."""
    items = read_items(questions)
    settings = with_server(read_settings(config, url))[0]
    asked = asyncio.run(_ask_all(items, settings, at_once))
    summary = summarise(asked)
    if out is not None:
        lines = "".join(f"{line}\n" for line in map(_line, asked))
        write(lines, out)
    if is_json:
        return print_json({**summary, "lines": [_record(each) for each in asked]})
    _show(asked, summary)


def read_items(path: Path) -> tuple[Item, ...]:
    """Raises ConfigError that names the line, and for a file without questions."""
    from compllm.build_scripts.own.examples import read_records, text_of

    items = []
    for number, record in read_records(path):
        where = f"{path}: line {number}"
        items.append(Item(text_of(record, "question", where), _expected(record, where)))
    if not items:
        raise ConfigError(f"{path} has no question: give one a line, or JSON lines or CSV")
    return tuple(items)


def _expected(record: dict[str, Any], where: str) -> Parts:
    accept = record.get("accept")
    if accept is None:
        answer = record.get("answer")
        if answer is None or answer == "":
            return ()
        accept = [[answer]]
    is_list = isinstance(accept, list) and bool(accept)
    if not is_list or not all(isinstance(part, list) and part for part in accept):
        raise ConfigError(f"{where}: accept is {accept!r}: expected a list of lists of texts")
    for text in (text for part in accept for text in part):
        if not isinstance(text, str) or not _words(text):
            raise ConfigError(f"{where}: the expected answer is {text!r}: expected a text")
    return tuple(tuple(part) for part in accept)


def holds(answer: str, expected: Parts) -> bool:
    """Whether an alternative of every part stands in the answer, as whole words or numbers."""
    said = f" {_words(answer)} "
    if _UNKNOWN in said:
        return all(any(_UNKNOWN in _words(one) for one in part) for part in expected)
    return all(any(f" {_words(one)} " in said for one in part) for part in expected)


def _words(text: str) -> str:
    """Small words with a blank between; a sign or a point within a number stays."""
    return " ".join(re.findall(r"[-+]?\d+(?:[.,]\d+)*|[^\W_]+(?:['-][^\W_]+)*", text.casefold()))


async def _ask_all(items: Sequence[Item], settings: Config, at_once: int) -> list[Asked]:
    from rich.console import Console

    turns = asyncio.Semaphore(at_once)
    with progress(len(items)) as advance:
        async with await connected(settings, Console(stderr=True)) as llm:

            async def ask(item: Item) -> Asked:
                async with turns:
                    asked = await _ask(llm, item)
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
    if not seconds:
        return None
    percentiles = statistics.quantiles(seconds, n=100, method="inclusive") if seconds[1:] else None
    p95 = percentiles[94] if percentiles else seconds[0]
    return {"p50": round(statistics.median(seconds), 4), "p95": round(p95, 4)}


def _record(asked: Asked) -> dict[str, Any]:
    answer = asked.answer
    record: dict[str, Any] = {"question": asked.item.question, "answer": asked.text}
    if asked.item.expected:
        record |= {"accept": asked.item.expected, "is_right": asked.is_right}
    if asked.error:
        record["error"] = asked.error
    if answer is not None:
        steps = zip(answer.plan.sub_queries, answer.nodes, strict=False)  # partial: fewer nodes
        record |= {
            "steps": [sub_query.text for sub_query in answer.plan.sub_queries],
            "experts": [node.expert for _, node in steps],
            "confidence": answer.confidence,
            "seconds": round(answer.timings.total_s, 4),
        }
    return record


def _line(asked: Asked) -> str:
    import json

    return json.dumps(_record(asked), ensure_ascii=False)


def _show(asked: Sequence[Asked], summary: dict[str, Any]) -> None:
    wrong = [each for each in asked if each.error or (each.item.expected and not each.is_right)]
    if wrong:
        rows = [
            (
                each.item.question,
                each.error or each.text,
                "; ".join(" or ".join(part) for part in each.item.expected) or "-",
            )
            for each in wrong[:_MOST_WRONG]
        ]
        print_table(("question", "answer", "expected"), rows)
        if len(wrong) > _MOST_WRONG:
            print(f"and {len(wrong) - _MOST_WRONG} more: --out FILE has them all")
    print(f"{counted(summary['questions'], 'question')}, {summary['failed']} failed")
    if summary["known"]:
        share = summary["right"] / summary["known"]
        print(f"right       {summary['right']} of {summary['known']} ({share:.0%})")
    print(f"low         {summary['low_confidence']} marked as low in confidence")
    plans = summary["plans"]
    steps = ", ".join(f"{count} of {size}" for size, count in plans["sub_queries"].items())
    print(f"plans       by sub-queries: {steps or '-'}")
    print(f"            {plans['without_a_plan']} without a plan, {plans['fallbacks']} fallbacks")
    routes = ", ".join(f"{name} {count}" for name, count in summary["routes"].items())
    print(f"routes      {routes or '-'}")
    for name, times in summary["seconds"].items():
        if times:
            label = name.replace("_", " ")
            print(f"{label:12}p50 {times['p50']:.2f} s, p95 {times['p95']:.2f} s")
