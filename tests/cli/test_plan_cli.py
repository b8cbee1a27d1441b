"""A file of questions through `compllm plan --questions`, on the scripted backend."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest
from command_line import CATALOGUE

from compllm.catalogue import load_catalogue
from compllm.cli.app import run
from compllm.cli.plan import plan_questions
from compllm.config import Config, load_config
from compllm.errors import BackendUnavailable, ConfigError, ServerError
from compllm.pipeline import CompLLM
from compllm.testing import HashingEncoder, Reply, ScriptedBackend

JOIN = "1 | How many legs?\n2 | How many arms?\n3 <1,2> | What is #1 plus #2?\n"
ONE = "1 | Who wrote it?\n"
REPLIES = (Reply(JOIN, contains="sum"), Reply(ONE, contains="book"), Reply("nonsense"))


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = tmp_path / "experts.toml"
    catalogue.write_text(CATALOGUE)
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    monkeypatch.setenv("COMPLLM_CATALOGUE", str(catalogue))


@pytest.fixture
async def address() -> AsyncIterator[str]:
    """A program listens here: the server is there."""
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    yield f"{host}:{port}"
    server.close()
    await server.wait_closed()


def opened(backend: ScriptedBackend, address: str) -> CompLLM:
    # Questions that no expert owns: their plans are looked at all the same.
    config = load_config(overrides={"server.url": address, "gate.whole_to_base": False})
    return CompLLM(backend, HashingEncoder(), load_catalogue(Path(config.catalogue)), config)


def write_questions(path: Path, *questions: str) -> Path:
    path.write_text("".join(json.dumps({"question": text}) + "\n" for text in questions))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def plan_all(backend: ScriptedBackend, address: str, tmp_path: Path, n: int = 4) -> int:
    async with opened(backend, address) as llm:
        return (await plan_questions(llm, tmp_path / "in.jsonl", tmp_path / "out.jsonl", n))[0]


async def test_every_line_comes_out_with_its_plan_in_order(tmp_path: Path, address: str) -> None:
    lines = [{"question": "sum?", "id": 7}, {"question": "book?"}, {"question": "odd?"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert await plan_all(ScriptedBackend(*REPLIES), address, tmp_path) == 3
    first, second, third = read_lines(tmp_path / "out.jsonl")
    assert first == {
        "question": "sum?",
        "id": 7,
        "steps": ["How many legs?", "How many arms?", "What is #1 plus #2?"],
        "parents": [[], [], [0, 1]],
        "is_fallback": False,
    }
    assert second["steps"] == ["Who wrote it?"]
    assert third == {
        "question": "odd?",
        "steps": ["odd?"],
        "parents": [[]],
        "is_fallback": True,
    }


async def test_at_most_so_many_questions_are_at_the_engine(tmp_path: Path, address: str) -> None:
    write_questions(tmp_path / "in.jsonl", *(f"book {number}?" for number in range(20)))
    gate = asyncio.Event()  # the first ones stay until as many as may come have come
    backend = ScriptedBackend(Reply(ONE, gate=gate))
    planned = asyncio.create_task(plan_all(backend, address, tmp_path, n=3))
    await backend.wait_for("book", 3)
    gate.set()
    assert await planned == 20
    assert backend.max_running == 3


async def test_a_stopped_run_goes_on_behind_its_last_whole_line(
    tmp_path: Path, address: str
) -> None:
    write_questions(tmp_path / "in.jsonl", "sum 1?", "sum 2?", "book?")
    whole = ScriptedBackend(*REPLIES)
    await plan_all(whole, address, tmp_path)
    expected = (tmp_path / "out.jsonl").read_bytes()
    first = expected.index(b"\n") + 1
    (tmp_path / "out.jsonl").write_bytes(expected[: first + 10])
    rest = ScriptedBackend(*REPLIES)
    assert await plan_all(rest, address, tmp_path) == 2
    assert not rest.find("sum 1?")
    assert (tmp_path / "out.jsonl").read_bytes() == expected
    assert await plan_all(ScriptedBackend(), address, tmp_path) == 0


async def test_an_output_of_other_questions_is_refused(tmp_path: Path, address: str) -> None:
    write_questions(tmp_path / "in.jsonl", "book?")
    write_questions(tmp_path / "out.jsonl", "another?")
    with pytest.raises(ConfigError, match="belongs to other questions"):
        await plan_all(ScriptedBackend(*REPLIES), address, tmp_path)
    plan = {"steps": ["book?"], "parents": [[]], "is_fallback": True}
    lines = [{"question": "book?", **plan}, {"question": "one more?", **plan}]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match="nothing is asked there"):
        await plan_all(ScriptedBackend(*REPLIES), address, tmp_path)


async def test_a_server_that_goes_away_is_no_fall_back(tmp_path: Path, address: str) -> None:
    write_questions(tmp_path / "in.jsonl", "book?", "gone?", "gone again?")
    away = Reply(contains="gone", error=BackendUnavailable("no answer from the server"))
    backend = ScriptedBackend(REPLIES[1], away)
    with pytest.raises(ServerError, match="at line 2"):
        await plan_all(backend, "127.0.0.1:1", tmp_path, n=1)
    assert [line["question"] for line in read_lines(tmp_path / "out.jsonl")] == ["book?"]


async def test_a_question_that_is_too_long_is_one_step_and_the_others_are_planned(
    tmp_path: Path, address: str
) -> None:
    """Once it ended the file, and every resume of it."""
    write_questions(tmp_path / "in.jsonl", "book?", "x" * 9000, "sum?")
    backend = ScriptedBackend(*REPLIES)
    async with opened(backend, address) as llm:
        found = await plan_questions(llm, tmp_path / "in.jsonl", tmp_path / "out.jsonl", 4)
    assert found == (3, 1)
    first, long, last = read_lines(tmp_path / "out.jsonl")
    assert long == {
        "question": "x" * 9000,
        "steps": ["x" * 9000],
        "parents": [[]],
        "is_fallback": True,
        "error": "the question has 9000 characters, at most 8000 are allowed",
    }
    assert "error" not in {*first, *last}
    assert await plan_all(ScriptedBackend(), address, tmp_path) == 0


async def test_an_output_of_another_command_is_no_plan(tmp_path: Path, address: str) -> None:
    """Once `compllm route`'s lines of the same questions passed for planned ones."""
    write_questions(tmp_path / "in.jsonl", "book?")
    routed = {"question": "book?", "expert": "base", "similarity": 0.1, "is_fallback": True}
    (tmp_path / "out.jsonl").write_text(json.dumps(routed) + "\n")
    with pytest.raises(ConfigError, match="has no 'steps' in line 1: it is no output of this"):
        await plan_all(ScriptedBackend(*REPLIES), address, tmp_path)
    assert read_lines(tmp_path / "out.jsonl") == [routed]


def connect_to(monkeypatch: pytest.MonkeyPatch, replies: Iterable[Reply]) -> None:
    async def connect(config: Config) -> CompLLM:
        catalogue = load_catalogue(Path(config.catalogue))
        return CompLLM(ScriptedBackend(*replies), HashingEncoder(), catalogue, config)

    monkeypatch.setattr(CompLLM, "connect", connect)
    monkeypatch.setenv("COMPLLM_SERVER_URL", "127.0.0.1:1")


def test_the_command_writes_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connect_to(monkeypatch, REPLIES)
    questions = str(write_questions(tmp_path / "in.jsonl", "sum?", "book?"))
    out = tmp_path / "out.jsonl"
    assert run(["plan", "--questions", questions, "--json", str(out)]) == 0
    assert [line["is_fallback"] for line in read_lines(out)] == [False, False]
    assert "2 questions planned, 0 by the fall-back" in capsys.readouterr().err


def test_a_bad_line_of_standard_input_ends_the_run_behind_those_before_it(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    connect_to(monkeypatch, REPLIES)
    content = b'{"question": "sum?"}\nnonsense\n{"question": "book?"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert run(["plan", "--questions", "-"]) == 2
    printed = capsysbinary.readouterr()
    assert json.loads(printed.out)["question"] == "sum?"
    assert b"line 2 is not JSON" in printed.err


def test_bad_lines_are_named_before_anything_is_planned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"question": "sum?"}\n[]\nno\n')
    assert run(["plan", "--questions", str(path), "--json", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "line 2 has no question" in error
    assert "line 3 is not JSON" in error
    assert not (tmp_path / "out").exists()


def test_the_file_of_questions_is_no_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(write_questions(tmp_path / "in.jsonl", "sum?"))
    assert run(["plan", "--questions", path, "--json", path]) == 2
    assert "is the file of questions itself" in capsys.readouterr().err
    assert [line["question"] for line in read_lines(tmp_path / "in.jsonl")] == ["sum?"]


@pytest.mark.parametrize(
    "arguments",
    [["--questions", "a", "a question"], ["--questions", "a", "--plan", "b"], ["q", "--json", "c"]],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str]) -> None:
    assert run(["plan", *arguments]) == 2
