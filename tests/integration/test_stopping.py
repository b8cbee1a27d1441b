"""Commands and servers that are ended by a signal: what runs is cancelled, or finishes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from comp_llm_client import num_active
from helpers import bare_catalogue

from compllm import paths
from compllm.server import triton_server
from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton

WAIT_S = 60.0
PLAN = "1 | What is iron?\n2 <1> | Why is #1?\n3 <2> | Why is #2?\n"


@pytest.fixture
def mine(
    engine_dir: Path, encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ServerInfo]:
    """The user's server, whose commands write long responses."""
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    paths.encoder_dir().parent.mkdir(parents=True)
    paths.encoder_dir().symlink_to(encoder_dir)
    monkeypatch.setenv("COMPLLM_CATALOGUE", str(bare_catalogue(tmp_path)))
    monkeypatch.setenv("COMPLLM_LIMITS_MAX_NODE_TOKENS", "400")
    monkeypatch.setenv("COMPLLM_COMPOSE_POLICY", "never")
    (tmp_path / "plan.txt").write_text(PLAN)
    yield triton_server.up(engine_dir)
    triton_server.down()


@contextmanager
def command(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "compllm", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        # Tests that run in the background of a script ignore SIGINT, and so would the command.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        watchdog = threading.Timer(WAIT_S, process.kill)
        watchdog.start()
        yield process
        watchdog.cancel()


def until_active(server: ServerInfo, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not num_active(server):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until_idle(server: ServerInfo) -> None:
    deadline = time.monotonic() + 5.0
    while num_active(server):
        assert time.monotonic() < deadline, "the engine still computes for a command that is gone"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("name", ["ask", "plan"])
def test_a_command_that_is_ended_cancels_its_requests_at_the_server(
    name: str, number: signal.Signals, mine: ServerInfo, tmp_path: Path
) -> None:
    if name == "ask":
        # The metrics are published four times a second: the engine shall not rest between two.
        (tmp_path / "wide.txt").write_text("".join(f"{n} | Why is {n}?\n" for n in range(1, 33)))
        arguments = ["ask", "Why?", "--plan", str(tmp_path / "wide.txt"), "--json"]
    else:
        (tmp_path / "q.jsonl").write_text('{"question": "Why?"}\n' * 200)
        arguments = ["plan", "--questions", str(tmp_path / "q.jsonl"), "--gate", "off"]
    with command(*arguments) as process:
        until_active(mine, process)
        process.send_signal(number)
        _, err = process.communicate(timeout=WAIT_S)
    said = {signal.SIGTERM: (143, "terminated"), signal.SIGINT: (130, "interrupted")}[number]
    assert (process.returncode, err.splitlines()[-1]) == said
    assert "Traceback" not in err
    until_idle(mine)


def test_a_query_of_a_command_finishes_when_the_server_is_stopped(
    mine: ServerInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of HTTP clients did; a command's is a row of requests, and the next one was refused."""
    monkeypatch.setenv("COMPLLM_LIMITS_MAX_NODE_TOKENS", "30")  # they have some seconds
    with command("ask", "Why?", "--plan", str(tmp_path / "plan.txt")) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("started  1"):
                break
        os.kill(mine.pid, signal.SIGTERM)
        out, err = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0
    assert "partial" not in err
    assert out.strip()
    deadline = time.monotonic() + WAIT_S
    while triton_server.last_started() is not None:
        assert time.monotonic() < deadline, "the server was not stopped"
        time.sleep(0.05)


def test_a_server_is_stopped_at_once_when_no_command_asks_it(mine: ServerInfo) -> None:
    start = time.monotonic()
    assert triton_server.down()
    assert time.monotonic() - start < 5.0
