"""The command line, on the scripted backend where a server is needed."""

import io
import json
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer

import compllm
from compllm.catalogue import load_catalogue
from compllm.cli.app import app, run
from compllm.config import Config, GateConfig
from compllm.errors import BackendUnavailable, ConfigWarning
from compllm.pipeline import CompLLM
from compllm.plan import direct_plan
from compllm.testing import HashingEncoder, Reply, ScriptedBackend
from compllm.types import Plan

CATALOGUE = """
[base]
system = "Answer."
[router]
threshold = 0.3
encoder = "hashing-64"
[[experts]]
name = "chemistry"
domain = "elements"
system = "You know elements."
examples = ["What is the atomic number of iron?"]
"""
PLAN = "1 | What is the atomic number of iron?\n2 | How many legs?\n3 <1,2> | What is #1 plus #2?\n"
REPLIES = (
    Reply(PLAN, is_guided=True),
    Reply("26", contains="atomic number of iron?<|im_end|>"),
    Reply("4", contains="How many legs?<|im_end|>"),
    Reply("thirty", contains="What is 26 plus 4?"),
    Reply(("It is ", "30."), contains="the whole"),
)


@pytest.fixture(autouse=True)
def _settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue = tmp_path / "experts.toml"
    catalogue.write_text(CATALOGUE)
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    monkeypatch.setenv("COMPLLM_CATALOGUE", str(catalogue))
    monkeypatch.setenv("COMPLLM_COMPOSE_POLICY", "always")
    monkeypatch.delenv("COMPLLM_DEBUG", raising=False)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    return script(monkeypatch, *REPLIES)


def script(monkeypatch: pytest.MonkeyPatch, *replies: Reply) -> ScriptedBackend:
    """What `CompLLM.connect` finds instead of a server."""
    backend = ScriptedBackend(*replies)

    async def connect(config: Config) -> CompLLM:
        catalogue = load_catalogue(Path(config.catalogue))
        return CompLLM(backend, HashingEncoder(), catalogue, config)

    monkeypatch.setattr(CompLLM, "connect", connect)
    monkeypatch.setenv("COMPLLM_SERVER_URL", "127.0.0.1:1")
    return backend


def printed_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line an error is."""
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    return line


def give_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


@pytest.mark.usefixtures("backend")
def test_ask_writes_the_answer_to_stdout_and_the_graph_to_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["ask", "the whole"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "It is 30.\n"
    assert "planned  3 after 1, 2" in printed.err
    assert "done     1" in printed.err
    assert "3 nodes in" in printed.err


@pytest.mark.usefixtures("backend")
def test_json_is_one_object_of_the_agreed_shape(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "--json", "the whole"]) == 0
    value = printed_json(capsys)
    keys = [
        "query",
        "answer",
        "finish_reason",
        "confidence",
        "is_low_confidence",
        "plan",
        "nodes",
        "timings",
        "bound",
    ]
    assert list(value) == keys
    assert (value["answer"], value["finish_reason"]) == ("It is 30.", "stop")
    assert value["plan"] == {
        "num_nodes": 3,
        "depth": 2,
        "is_fallback": False,
        "lines": PLAN.splitlines(),
    }
    assert [node["expert"] for node in value["nodes"]] == ["chemistry", "base", "chemistry"]
    assert [node["response"] for node in value["nodes"]] == ["26", "4", "thirty"]


@pytest.mark.usefixtures("backend")
def test_question_comes_from_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    give_stdin(monkeypatch, b"the whole\n")
    assert run(["ask", "-", "--json"]) == 0
    assert printed_json(capsys)["query"] == "the whole"


def test_given_plan_runs_instead_of_the_generators(
    backend: ScriptedBackend, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.txt"
    file.write_text("1 | How many legs?\n")
    assert run(["ask", "the whole", "--plan", str(file), "--json"]) == 0
    assert printed_json(capsys)["plan"]["lines"] == ["1 | How many legs?"]
    assert not [recorded for recorded in backend.requests if recorded.request.guide]


def test_without_a_plan_the_whole_question_goes_to_one_expert(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPLLM_COMPOSE_POLICY", "auto")
    question = "What is the atomic number of iron?"
    backend = script(monkeypatch, *REPLIES)
    assert run(["ask", question, "--no-plan", "--json"]) == 0
    value = printed_json(capsys)
    assert (value["answer"], value["plan"]["is_direct"]) == ("26", True)
    assert [node["expert"] for node in value["nodes"]] == ["chemistry"]
    assert len(backend.requests) == 1


def test_a_plan_and_none_exclude_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "x", "--no-plan", "--plan", "plan.txt"]) == 2
    assert "not both" in error_of(capsys)


@pytest.mark.parametrize("command", ["ask", "plan"])
@pytest.mark.parametrize("mode", ["off", "on", "auto"])
def test_the_gate_is_what_the_option_says(
    command: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    async def connect(config: Config) -> CompLLM:
        seen.append(config.gate.mode)
        raise BackendUnavailable("nothing more is needed here")

    monkeypatch.setattr(CompLLM, "connect", connect)
    monkeypatch.setenv("COMPLLM_GATE_MODE", "on")
    assert run([command, "x", "--gate", mode, "--url", "127.0.0.1:1"]) == 1
    assert seen == [mode]


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


@pytest.mark.usefixtures("backend")
def test_options_reach_the_answers_sampling(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    backend = script(monkeypatch, *REPLIES)
    options = ["--max-tokens", "7", "--temperature", "0.5", "--seed", "3"]
    assert run(["ask", "the whole", "--json", *options]) == 0
    (answer,) = backend.find("the whole\n\nKnown facts")
    sampling = answer.request.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.seed) == (7, 0.5, 3)


def test_failure_of_the_engine_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, Reply(error=BackendUnavailable("nobody answers at 127.0.0.1:1")))
    monkeypatch.setenv("COMPLLM_TIMEOUTS_RETRY_WAIT_S", "0")
    assert run(["ask", "--json", "the whole"]) == 1


def test_no_server_says_how_to_start_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "anything"]) == 1
    assert "compllm up" in error_of(capsys)


@pytest.mark.parametrize("command", ["ask", "plan"])
@pytest.mark.usefixtures("backend")
def test_bad_questions_are_refused(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        ([], "no question"),
        ([""], "empty"),
        ([" \n"], "empty"),
        (["x" * 100_000], "8000"),
    ):
        assert run([command, *arguments]) == 2
        assert said in error_of(capsys)
    give_stdin(monkeypatch, b"\xff\xfe\x00binary")
    assert run([command, "-"]) == 2
    assert "not UTF-8" in error_of(capsys)


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


def test_experts_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["experts", "--json"]) == 0
    names = [expert["name"] for expert in printed_json(capsys)["experts"]]
    assert names == ["chemistry", "base"]
    assert run(["experts"]) == 0
    assert "elements" in capsys.readouterr().out


def test_status_without_a_server_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status"]) == 1
    assert "compllm up" in capsys.readouterr().out
    assert run(["status", "--json"]) == 1
    assert printed_json(capsys) == {"is_running": False}


def test_down_without_a_server_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["down"]) == 0
    assert capsys.readouterr().out == "no server was running\n"


def test_doctor_of_an_empty_cache_is_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 1
    value = printed_json(capsys)
    missing = [check["name"] for check in value["checks"] if check["status"] == "missing"]
    assert missing == ["base model", "sentence encoder", "encoder in OpenVINO", "engine"]
    assert run(["doctor"]) == 1
    assert "-> `compllm up` makes it" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["fly"],
        ["ask", "--temperature", "warm", "x"],
        ["ask", "--wings", "x"],
        ["up", "--port", "-1"],
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    error_of(capsys)


def test_wrong_setting_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPLLM_LIMITS_MAX_NODES", "many")
    assert run(["ask", "x"]) == 2
    assert "COMPLLM_LIMITS_MAX_NODES" in error_of(capsys)


def test_debugging_shows_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLLM_DEBUG", "1")
    with pytest.raises(Exception, match="no question"):
        run(["ask"])


def test_interruption_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def interrupted(config: Config) -> CompLLM:
        raise KeyboardInterrupt

    monkeypatch.setattr(CompLLM, "connect", interrupted)
    assert run(["ask", "x", "--url", "127.0.0.1:1"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    names = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    assert names == {
        "ask", "plan", "route", "train", "explain", "replay", "simulate", "experts",
        "up", "down", "status", "doctor",
    }  # fmt: skip
    assert all(f"  {name} " in out for name in names)


def test_without_a_command_the_help_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["eval"]):
        assert run(arguments) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("Usage: compllm")
        assert "\nCommands:\n" in printed
        assert "error" not in printed


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"compllm {compllm.__version__}\n"
    assert compllm.__version__ == metadata.version("compllm")


def test_every_option_has_a_help_text() -> None:
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        for parameter in command.params:
            text = getattr(parameter, "help", "")
            assert len(text or "") > 12, f"{name} {parameter.name}: {text!r}"


def test_a_doubtful_setting_is_one_line_of_warning(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def connect(config: Config) -> CompLLM:
        warnings.warn("the server serves A", ConfigWarning, stacklevel=1)
        raise BackendUnavailable("nothing more is needed here")

    monkeypatch.setattr(CompLLM, "connect", connect)
    assert run(["ask", "x", "--url", "127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.splitlines()[0] == "warning: the server serves A"


def test_help_imports_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys; from compllm.cli.app import run; run(['--help']); "
        "heavy = {'torch', 'numpy', 'grpc', 'transformers', 'openvino', 'compllm._core'}; "
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
