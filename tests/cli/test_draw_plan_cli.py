"""`compllm plan` of one question or a plan file, on the scripted backend."""

import json
from pathlib import Path

import pytest
from command_line import PLAN, error_of, printed_json

from compllm.cli.app import run
from compllm.config import GateConfig
from compllm.plan import direct_plan
from compllm.testing import ScriptedBackend
from compllm.types import Plan

pytestmark = pytest.mark.usefixtures("example_settings")


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("mode", "num_lines"), [("on", 1), ("off", 3)])
def test_plan_shows_the_plan_that_ask_runs(
    mode: str, num_lines: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Gate:
        async def plan(self, text: str) -> Plan:
            return direct_plan(text)

    async def open_gate(settings: GateConfig, _: object) -> Gate | None:
        return Gate() if settings.mode == "on" else None

    monkeypatch.setattr("compllm.pipeline.open_gate", open_gate)
    monkeypatch.setenv("COMPLLM_GATE_MODE", mode)
    question = "How many legs, on the whole?"
    assert run(["plan", question, "--format", "json"]) == 0
    shown = printed_json(capsys)["plan"]
    assert run(["ask", question, "--json"]) == 0
    assert printed_json(capsys)["plan"] == shown
    assert len(shown["lines"]) == num_lines


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"1 <2> | a\n2 <1> | b\n", "cycle"),
        (b"1 <2> | a\n2 | b\n", "forward reference"),
        (b"1 | a\n1 | b\n", "twice"),
        (b"1 <7> | a\n", "7"),
        (b"", "empty"),
        (b"\x00\x01\xfe\xff", "UTF-8"),
        (b"what?\n", "what?"),
        (b"".join(b"%d | a\n" % number for number in range(1, 10_001)), "10000"),
    ],
)
def test_bad_plan_files_are_refused(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.txt"
    file.write_bytes(content)
    assert run(["plan", "--plan", str(file)]) == 2
    assert said in error_of(capsys)
    assert run(["ask", "x", "--plan", str(file)]) == 2


def test_plan_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "x", "--plan", "/nowhere/plan.txt"]) == 2
    assert "/nowhere/plan.txt" in error_of(capsys)


def test_plan_is_made_but_not_run(
    backend: ScriptedBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", "the whole"]) == 0
    assert capsys.readouterr().out == PLAN
    assert len(backend.requests) == 1


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(
    ("format", "begin"), [("mermaid", "flowchart TD\n"), ("dot", "digraph plan {\n")]
)
def test_plan_is_drawn_with_its_experts(
    format: str, begin: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["plan", "the whole", "--format", format]) == 0
    out = capsys.readouterr().out
    assert out.startswith(begin)
    assert "1 · chemistry" in out


@pytest.mark.usefixtures("backend")
def test_plan_as_json_can_be_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "plan.json"
    assert run(["plan", "the whole", "-f", "json", "-o", str(file)]) == 0
    assert json.loads(file.read_text())["routes"][0]["expert"] == "chemistry"
    assert run(["plan", "--plan", str(file)]) == 0
    assert capsys.readouterr().out == PLAN


def test_plan_file_is_drawn_without_a_server(tmp_path: Path) -> None:
    file, picture = tmp_path / "plan.txt", tmp_path / "plan.png"
    file.write_text(PLAN)
    assert run(["plan", "--plan", str(file), "--format", "png", "--output", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
