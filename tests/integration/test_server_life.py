"""Starting, finding, losing and stopping real servers."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import psutil
import pytest
from server_processes import (
    processes,
    shared_memory,
    temporary_folders,
    until_started_again,
    wait_until_gone,
)

from compllm import paths
from compllm.errors import ConfigError, ServerError
from compllm.niceness import NICENESS
from compllm.server import triton_server
from compllm.server.triton_state import HOST

pytestmark = pytest.mark.triton


def test_up_is_found_again_and_down_leaves_nothing(engine_dir: Path, fresh_home: Path) -> None:
    info = triton_server.up(engine_dir)
    assert len(processes(fresh_home)) == 3
    assert shared_memory(info)
    assert triton_server.up(engine_dir) == triton_server.status() == info
    with triton_server.running(engine_dir) as shared:
        assert shared == info
    assert triton_server.status() == info
    with pytest.raises(ServerError, match=f"gRPC port {info.grpc_port}"):
        triton_server.up(engine_dir, grpc_port=info.grpc_port + 1)
    assert triton_server.down()
    wait_until_gone(fresh_home)
    assert not shared_memory(info)
    assert triton_server.status() is None
    assert not triton_server.down()


def test_another_engine_does_not_take_a_running_servers_place(
    engine_dir: Path, fresh_home: Path
) -> None:
    other = fresh_home / "other"
    shutil.copytree(engine_dir, other)
    info = triton_server.up(engine_dir)
    with pytest.raises(ServerError, match="already running with the engine"):
        triton_server.up(other)
    assert triton_server.status() == info


def test_engine_built_anew_gets_a_new_server(engine_dir: Path, fresh_home: Path) -> None:
    engine = fresh_home / "engine"
    shutil.copytree(engine_dir, engine)
    first = triton_server.up(engine)
    manifest = engine / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    second = triton_server.up(engine)
    assert first.pid != second.pid
    assert not psutil.pid_exists(first.server_pid)


def test_http_is_closed_until_a_port_is_asked_for(engine_dir: Path, fresh_home: Path) -> None:
    """One HTTP body of 50,000 brackets ended the server, and HTTP was open by default."""
    info = triton_server.up(engine_dir)
    assert (info.http_port, info.http_url) == (0, "")
    listening = {
        each.laddr.port
        for each in psutil.Process(info.server_pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }
    assert listening == {info.grpc_port, info.metrics_port}
    with pytest.raises(ServerError, match="already running with HTTP closed"):
        triton_server.up(engine_dir, http_port=0)
    assert triton_server.down()
    info = triton_server.up(engine_dir, http_port=0)
    with urllib.request.urlopen(info.http_url + "/v2/health/ready") as answer:
        assert answer.status == 200
    addresses = {
        each.laddr.ip
        for each in psutil.Process(info.server_pid).net_connections("tcp")
        if each.status == psutil.CONN_LISTEN
    }
    assert {each.removeprefix("::ffff:") for each in addresses} == {HOST}
    assert triton_server.up(engine_dir) == info  # it is not asked for, and may be open


def test_no_temporary_folder_is_left_after_deaths_and_down(
    engine_dir: Path, fresh_home: Path
) -> None:
    """Triton's Python backend makes one at each start, and leaves it where it is killed."""
    before = temporary_folders()
    info = triton_server.up(engine_dir)
    os.kill(info.server_pid, signal.SIGKILL)
    until_started_again(info)
    assert triton_server.down()
    wait_until_gone(fresh_home)
    assert temporary_folders() - before == set()


def test_killed_owner_takes_its_server_along(engine_dir: Path, fresh_home: Path) -> None:
    program = (
        "import sys, time\n"
        "from compllm.server import triton_server\n"
        "with triton_server.running(sys.argv[1]) as info:\n"
        "    print(info.shm_prefix, flush=True)\n"
        "    time.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(engine_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        prefix = owner.stdout.readline().strip()
        assert prefix
        assert len(processes(fresh_home)) == 3
        owner.kill()
    wait_until_gone(fresh_home)
    assert not list(Path("/dev/shm").glob(f"{prefix}*"))
    assert not list(paths.run_dir().glob("owned-*"))


def test_server_outlives_the_process_that_started_it_only_when_it_is_ready(
    engine_dir: Path, fresh_home: Path
) -> None:
    program = (
        "import os, sys\n"
        "from compllm.server import triton_process, triton_server\n"
        "if sys.argv[2] == 'killed':\n"
        "    triton_process.wait_ready = lambda *_: os.kill(os.getpid(), 9)\n"
        "triton_server.up(sys.argv[1])\n"
    )
    command = [sys.executable, "-c", program, str(engine_dir)]
    assert subprocess.run([*command, "killed"], check=False).returncode == -signal.SIGKILL
    wait_until_gone(fresh_home)
    assert triton_server.status() is None
    subprocess.run([*command, "whole"], check=True)
    info = triton_server.status()
    assert info is not None
    assert psutil.pid_exists(info.server_pid)


def test_owned_server_gives_way_on_its_cores_and_ends_with_its_block(
    engine_dir: Path, fresh_home: Path
) -> None:
    """With all cores taken by the engine, one child in a hundred started 10 ms after its parent."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with triton_server.running(engine_dir) as info:
        assert triton_server.status() is None
        assert psutil.pid_exists(info.server_pid)
        stubs = [each for each in processes(fresh_home) if "python_backend_stub" in each.name()]
        assert [stub.nice() for stub in stubs] == [max(own, NICENESS)]
        assert psutil.Process(info.server_pid).nice() == own  # it carries messages
    wait_until_gone(fresh_home)
    assert not list(paths.run_dir().glob("owned-*"))


def test_an_engine_of_niceness_0_gives_way_to_no_process(
    engine_dir: Path, fresh_home: Path
) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with triton_server.running(engine_dir, is_shared=False, options={"niceness": 0}):
        assert {process.nice() for process in processes(fresh_home)} == {own}


def test_impossible_niceness_leaves_no_server_behind(engine_dir: Path, fresh_home: Path) -> None:
    with (
        pytest.raises(ConfigError, match="niceness is 50"),
        triton_server.running(engine_dir, is_shared=False, options={"niceness": 50}),
    ):
        pytest.fail("a server of an impossible setting started")
    wait_until_gone(fresh_home)


def test_taken_port_is_named(engine_dir: Path, fresh_home: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"HTTP port {port} cannot be used"):
            triton_server.up(engine_dir, http_port=port)
    assert not processes(fresh_home)


def test_engine_that_does_not_load_gives_its_reason(engine_dir: Path, fresh_home: Path) -> None:
    broken = fresh_home / "broken"
    shutil.copytree(engine_dir, broken)
    (broken / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(ServerError, match=r"did not start: .*weights") as caught:
        triton_server.up(broken)
    assert "\n" not in str(caught.value)
    assert triton_server.status() is None
    wait_until_gone(fresh_home)


def test_foreign_program_at_the_port_is_not_taken_for_the_server(
    engine_dir: Path, fresh_home: Path
) -> None:
    info = triton_server.up(engine_dir)
    with http.server.HTTPServer((HOST, 0), http.server.BaseHTTPRequestHandler) as foreign:
        thread = threading.Thread(target=foreign.serve_forever)
        thread.start()
        state = paths.run_dir() / "server.json"
        moved = {**json.loads(state.read_text()), "grpc_port": foreign.server_port}
        state.write_text(json.dumps(moved))
        with pytest.raises(ServerError, match="another program answers"):
            triton_server.status()
        foreign.shutdown()
        thread.join()
    with pytest.raises(ServerError, match=r"does not answer|starts again"):  # it is young
        triton_server.status()
    assert triton_server.down()
    wait_until_gone(fresh_home)
    assert not psutil.pid_exists(info.server_pid)
