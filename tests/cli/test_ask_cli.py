"""`compllm ask`, on the scripted backend."""

from pathlib import Path

import pytest
from command_line import PLAN, REPLIES, error_of, give_stdin, printed_json, script

from compllm.cli.app import run
from compllm.config import Config
from compllm.errors import BackendUnavailable
from compllm.pipeline import CompLLM
from compllm.testing import Reply, ScriptedBackend

pytestmark = pytest.mark.usefixtures("example_settings")


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


@pytest.mark.parametrize("command", ["ask", "plan", "route"])
def test_a_question_without_quotes_names_the_remedy(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "What", "is", "iron?"]) == 2
    assert error_of(capsys).endswith(": put a question into quotes")


@pytest.mark.usefixtures("backend")
def test_a_question_that_begins_with_a_minus_sign_stands_behind_two(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(["ask", "-5 plus 3"]) == 2
    assert error_of(capsys).endswith(': before a text that begins with "-", write "--"')
    assert run(["ask", "--", "-5 plus 3"]) != 2  # it is read; the backend of this test has no reply
