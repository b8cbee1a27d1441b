"""The command line, on the scripted backend where a server is needed."""

import signal
import subprocess
import sys
import warnings
from importlib import metadata

import pytest
import typer
from command_line import error_of, printed_json

import compllm
from compllm.cli.app import app, run
from compllm.config import Config
from compllm.errors import BackendUnavailable, ConfigWarning
from compllm.pipeline import CompLLM

pytestmark = pytest.mark.usefixtures("example_settings")


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


@pytest.mark.parametrize(
    ("number", "status", "of_sigint"),
    [
        (signal.SIGTERM, 143, "default_int_handler"),
        (signal.SIGINT, 130, "default_int_handler"),
        (signal.SIGTERM, 143, "SIG_IGN"),  # as of a job that a script starts in the background
    ],
)
def test_a_signal_ends_a_command_with_its_own_status_and_one_line(
    number: signal.Signals, status: int, of_sigint: str
) -> None:
    program = (
        "import os, signal\n"
        f"signal.signal(signal.SIGINT, signal.{of_sigint})\n"
        "from compllm.cli import app\n"
        "from compllm.pipeline import CompLLM\n"
        "async def connect(config):\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    import asyncio\n"
        "    await asyncio.sleep(60)\n"
        "CompLLM.connect = connect\n"
        "import sys\n"
        "sys.argv = ['compllm', 'ask', 'x', '--url', '127.0.0.1:1']\n"
        "app.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == status
    assert done.stdout == ""
    assert done.stderr == ("terminated\n" if status == 143 else "interrupted\n")


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    names = {command.name or command.callback.__name__ for command in app.registered_commands}  # type: ignore[union-attr]
    assert names == {
        "ask", "plan", "route", "train", "explain", "replay", "simulate", "experts",
        "up", "down", "status", "doctor", "init",
    }  # fmt: skip
    groups = {str(group.name) for group in app.registered_groups}
    assert groups == {"eval", "expert", "base"}
    assert all(f"  {name} " in out for name in names | groups)


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
