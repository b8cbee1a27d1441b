"""15. A part of the server dies while `compllm ask` waits: one line, or what was said, in time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from compllm.cli.app import run
from compllm.server import triton_server
from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton

WAIT_S = 60.0


def plan_file(folder: Path, content: str) -> str:
    path = folder / "plan.txt"
    path.write_text(content)
    return str(path)


@contextlib.contextmanager
def asking(plan: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`compllm ask` as a process of its own, which a watchdog ends."""
    command = [sys.executable, "-m", "compllm", "ask", "Why?", "--plan", plan, "--deadline", "30"]
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        watchdog = threading.Timer(WAIT_S, process.kill)
        watchdog.start()
        yield process
        watchdog.cancel()


def kill_when(process: subprocess.Popen[str], begin: str, server: ServerInfo) -> list[str]:
    """Kill the server when a line of stderr begins so; the lines that followed."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(begin):
            os.kill(server.server_pid, signal.SIGKILL)
            return list(process.stderr)
    raise AssertionError(f"no line begins with {begin!r}")


def test_server_killed_while_nodes_run_is_one_error_line(
    own_server: ServerInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COMPLLM_LIMITS_MAX_NODE_TOKENS", "300")
    with asking(plan_file(tmp_path, "1 | What is iron?\n2 | What is gold?\n")) as process:
        *_, last = kill_when(process, "started  1", own_server)
        assert process.stdout is not None
        assert process.stdout.read() == ""
    assert process.returncode == 1
    assert last.startswith("error: no answer from the server")
    again = triton_server.status(wait_s=WAIT_S)
    assert again is not None
    assert again.server_pid != own_server.server_pid


def test_server_killed_after_a_node_leaves_a_partial_answer(
    own_server: ServerInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COMPLLM_LIMITS_MAX_NODE_TOKENS", "150")
    plan = plan_file(tmp_path, "1 | What is iron?\n2 <1> | Why is #1?\n")
    with asking(plan) as process:
        *_, last = kill_when(process, "started  2", own_server)
        assert process.stdout is not None
        said = process.stdout.read()
    assert process.returncode == 0
    assert said.startswith("What is iron? ")
    assert last.startswith("partial answer: no answer from the server")


def test_server_killed_while_the_answer_streams_leaves_what_was_said(
    own_server: ServerInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COMPLLM_LIMITS_MAX_ANSWER_TOKENS", "200")
    monkeypatch.setenv("COMPLLM_COMPOSE_POLICY", "always")
    with asking(plan_file(tmp_path, "1 | What is iron?\n")) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        begin = process.stdout.read(1)
        os.kill(own_server.server_pid, signal.SIGKILL)
        rest = process.stdout.read()
        *_, last = process.stderr
    assert process.returncode == 0
    assert begin
    assert rest.endswith("\n")
    assert last.startswith("partial answer: no answer from the server")


def test_a_question_waits_for_a_server_that_is_started_again(
    own_server: ServerInfo, tmp_path: Path
) -> None:
    os.kill(own_server.server_pid, signal.SIGKILL)
    with asking(plan_file(tmp_path, "1 | What is iron?\n")) as process:
        assert process.stdout is not None
        assert process.stdout.read().strip()
    assert process.returncode == 0


def test_a_supervisor_killed_before_the_question_is_told(
    own_server: ServerInfo, capsys: pytest.CaptureFixture[str]
) -> None:
    os.kill(own_server.pid, signal.SIGKILL)
    assert run(["ask", "Why?"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "`compllm up` starts it again" in line
