"""15. A part of the server dies: it looked alive, and answered no request for good."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest
from comp_llm_client import QUESTION, generate
from core_client import Refused, check_right_within, infer
from server_processes import (
    WAIT_S,
    processes,
    shared_memory,
    until_started_again,
    wait_until_gone,
)

from compllm.errors import ServerError
from compllm.server import triton_server
from compllm.server.server_log import reason_in
from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton

PARTS = ("tritonserver", "tensorrt_llm", "comp_llm")
NUM_ROUNDS = 3


def part(server: ServerInfo, name: str) -> psutil.Process:
    """The process of tritonserver, or of a model of this name."""
    triton = psutil.Process(triton_server.last_started().server_pid)  # type: ignore[union-attr]
    if name == "tritonserver":
        return triton
    (found,) = (each for each in triton.children() if f"/{name}/" in " ".join(each.cmdline()))
    return found


@contextlib.contextmanager
def load(server: ServerInfo, expected: list[int]) -> Iterator[list[list[int]]]:
    """Four clients that ask all the time; what they got that is not the right answer."""
    is_over, wrong = threading.Event(), list[list[int]]()

    def ask() -> None:
        while not is_over.is_set():
            try:
                if (ids := infer(server)) != expected:
                    wrong.append(ids)
            except (Refused, grpc.RpcError):
                time.sleep(0.2)  # a client that is refused does not ask again at once

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def whole_answer_within(server: ServerInfo, seconds: float) -> str:
    """The answer of `comp_llm`, which is asked until there is one."""
    start_s = time.monotonic()
    while True:
        try:
            return str(generate(server, text_input=QUESTION)["text_output"])
        except OSError:  # of urllib, too
            if time.monotonic() - start_s > seconds:
                raise
            time.sleep(0.05)


def check_killed(server: ServerInfo, name: str, again_s: float) -> None:
    expected, answer = infer(server), whole_answer_within(server, again_s)
    with load(server, expected) as wrong:
        time.sleep(0.2)
        killed = part(server, name)
        killed.kill()
        start_s = time.monotonic()
        with contextlib.suppress(psutil.Error):
            killed.wait(WAIT_S)
        check_right_within(server, expected, again_s)
        assert whole_answer_within(server, again_s) == answer
        assert time.monotonic() - start_s < again_s
    assert wrong == []
    again = triton_server.status(wait_s=WAIT_S)
    assert again is not None
    assert again.pid == server.pid


def test_under_load_the_next_right_answer_comes_soon(
    own_server: ServerInfo, again_s: float
) -> None:
    """Of `comp_llm`: the tests below kill the others."""
    check_killed(own_server, "comp_llm", again_s)


@pytest.mark.long
@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("number", range(NUM_ROUNDS))
def test_each_part_may_die_under_load(
    own_server: ServerInfo, again_s: float, name: str, number: int
) -> None:
    check_killed(own_server, name, again_s)


@pytest.mark.parametrize("part", ["tritonserver", "triton_python_backend_stub"])
def test_a_server_whose_part_was_killed_is_started_again(
    engine_dir: Path, fresh_home: Path, part: str
) -> None:
    """A server without its stub said that it was ready, and answered no request for good."""
    info = triton_server.up(engine_dir)
    before = set(shared_memory(info))
    (killed,) = (each for each in processes(fresh_home) if each.name() == part)
    killed.kill()
    again = until_started_again(info)
    assert (again.pid, again.grpc_port, again.id) == (info.pid, info.grpc_port, info.id)
    assert len(processes(fresh_home)) == 3
    assert shared_memory(info)
    assert not {each for each in before if each.exists()} - set(shared_memory(info))
    assert "the server is started again (death 1 of" in reason_in(Path(info.log))
    assert triton_server.up(engine_dir) == again
    assert triton_server.down()
    wait_until_gone(fresh_home)
    assert not shared_memory(info)


def test_up_waits_for_a_server_that_is_started_again(engine_dir: Path, fresh_home: Path) -> None:
    info = triton_server.up(engine_dir)
    os.kill(info.server_pid, signal.SIGKILL)
    again = triton_server.up(engine_dir)
    assert again.pid == info.pid
    assert again.server_pid != info.server_pid
    assert triton_server.status() == again


def test_a_server_that_dies_again_and_again_is_started_each_time(
    engine_dir: Path, fresh_home: Path
) -> None:
    """Six hostile requests within ten minutes ended it for good."""
    info = triton_server.up(engine_dir)
    pids = [info.server_pid]
    for _ in range(3):
        os.kill(info.server_pid, signal.SIGKILL)
        info = until_started_again(info)
        pids.append(info.server_pid)
    assert len(set(pids)) == 4
    assert "(death 3 of the last 10 minutes)" in reason_in(Path(info.log))
    assert triton_server.down()
    wait_until_gone(fresh_home)


def test_a_killed_supervisor_takes_its_server_along_and_is_reported(
    engine_dir: Path, fresh_home: Path
) -> None:
    info = triton_server.up(engine_dir)
    os.kill(info.server_pid, signal.SIGKILL)
    info = until_started_again(info)  # so that its log holds the reason of an earlier death
    supervisor = psutil.Process(info.pid)
    supervisor.kill()  # no process is left to clear up
    supervisor.wait(WAIT_S)
    with pytest.raises(ServerError, match=r"died.*compllm up") as caught:
        triton_server.status()
    assert f"its supervisor (process {info.pid}) is gone" in str(caught.value)
    assert "SIGKILL" not in str(caught.value)
    assert not triton_server.down()
    wait_until_gone(fresh_home)
    assert not shared_memory(info)
