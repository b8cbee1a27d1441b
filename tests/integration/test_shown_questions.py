"""Every question that a page, the catalogue or a help text shows is answered rightly as shipped.

The shipped adapters on the base that `make test` fetched, behind a real tritonserver, asked with
the default settings.
"""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from compllm import CompLLM, paths
from compllm.build_scripts.calibration.questions import is_right
from compllm.catalogue import load_catalogue
from compllm.config import load_config
from compllm.server import triton_server
from compllm.types import Answer

ROOT = Path(__file__).resolve().parents[2]
TABLE: dict[str, dict[str, list[list[str]]]] = tomllib.loads(
    (ROOT / "tests/integration/shown_questions.toml").read_text(encoding="utf-8")
)
ACCEPTED = {text: parts for table in TABLE.values() for text, parts in table.items()}
# OWN.md asks experts that it makes itself; test_own_page.py runs that page.
PAGES = (
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").glob("*.md") if page.name != "OWN.md"),
)
# As a command, as JSON for curl, as bytes for a Triton client, as a Query in Python.
_SHOWN = re.compile(
    r"""compllm\ (?:ask|plan)\ [^"'\n]*"([^"$.][^"]*)" | "text_input":\s*"([^"{]+)"
    | b"([^"]+\?)" | Query\("([^"]+)"\)""",
    re.VERBOSE,
)


def shown(text: str) -> list[str]:
    return [next(filter(None, groups)) for groups in _SHOWN.findall(text)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_question_of_a_page_is_in_the_table(page: Path) -> None:
    assert [each for each in shown(page.read_text(encoding="utf-8")) if each not in ACCEPTED] == []


def test_the_readme_shows_questions() -> None:
    assert len(set(shown((ROOT / "README.md").read_text(encoding="utf-8")))) >= 5


def test_every_question_of_the_catalogue_is_in_the_table() -> None:
    catalogue = load_catalogue()
    questions = [*catalogue.out_of_domain, *(q for texts in catalogue.examples for q in texts)]
    assert [each for each in questions if "#" not in each and each not in ACCEPTED] == []


@pytest.fixture(scope="module")
def answers() -> Iterator[dict[str, Answer]]:
    """The answer to each question of the table, by the default settings."""

    async def ask_all(url: str) -> dict[str, Answer]:
        config = load_config(environ={})
        config = replace(config, server=replace(config.server, url=url))
        slots = asyncio.Semaphore(8)
        async with await CompLLM.connect(config) as llm:

            async def ask(question: str) -> Answer:
                async with slots:
                    return await llm.ask(question)

            found = await asyncio.gather(*(ask(question) for question in ACCEPTED))
        return dict(zip(ACCEPTED, found, strict=True))

    with triton_server.running(paths.engine_dir(), is_shared=False) as server:
        yield asyncio.run(ask_all(server.grpc_url))


@pytest.mark.triton
@pytest.mark.parametrize("question", ACCEPTED)
def test_a_shown_question_is_answered_rightly(answers: dict[str, Answer], question: str) -> None:
    answer = answers[question]
    missing = [part for part in ACCEPTED[question] if not is_right(answer.text, tuple(part))]
    steps = [f"{node.expert}: {node.response}" for node in answer.nodes]
    assert not missing, f"{question} -> {answer.text!r} by {steps}"


@pytest.mark.triton
def test_no_plan_has_a_step_that_returns(answers: dict[str, Answer]) -> None:
    lines = [line.text for answer in answers.values() for line in answer.plan.sub_queries]
    assert [line for line in lines if line.startswith("return ")] == []
