"""Starting, finding, losing and stopping real servers."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from compllm import paths
from compllm.errors import ConfigError, ServerError
from compllm.niceness import NICENESS
from compllm.server import triton_server
from compllm.server.health import models
from compllm.server.server_log import reason_in
from compllm.server.supervisor import PID_FILE
from compllm.server.triton_state import HOST, ServerInfo

pytestmark = pytest.mark.triton

WAIT_S = 30.0


@pytest.fixture
def home(engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A user of their own, whose server is stopped in the end. After `engine_dir`, which reads the
    real one's cache."""
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    yield tmp_path
    with contextlib.suppress(ServerError):
        triton_server.down()


def _wait_until_gone(home: Path) -> None:
    """Until no process out of this home is left: the supervisor, the server, the stub."""
    processes = _processes(home)
    _, alive = psutil.wait_procs(processes, timeout=WAIT_S)
    assert not alive
    assert not _processes(home)


def _processes(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_ours = any(str(home) in part for part in process.cmdline())
            if is_ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
    return found


def _shared_memory(info: ServerInfo) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{info.shm_prefix}*"))


def test_up_is_found_again_and_down_leaves_nothing(engine_dir: Path, home: Path) -> None:
    info = triton_server.up(engine_dir)
    assert len(_processes(home)) == 3
    assert _shared_memory(info)
    assert triton_server.up(engine_dir) == triton_server.status() == info
    with triton_server.running(engine_dir) as shared:
        assert shared == info
    assert triton_server.status() == info
    with pytest.raises(ServerError, match=f"gRPC port {info.grpc_port}"):
        triton_server.up(engine_dir, grpc_port=info.grpc_port + 1)
    assert triton_server.down()
    _wait_until_gone(home)
    assert not _shared_memory(info)
    assert triton_server.status() is None
    assert not triton_server.down()


def test_another_engine_does_not_take_a_running_servers_place(engine_dir: Path, home: Path) -> None:
    other = home / "other"
    shutil.copytree(engine_dir, other)
    info = triton_server.up(engine_dir)
    with pytest.raises(ServerError, match="already running with the engine"):
        triton_server.up(other)
    assert triton_server.status() == info


def test_engine_built_anew_gets_a_new_server(engine_dir: Path, home: Path) -> None:
    engine = home / "engine"
    shutil.copytree(engine_dir, engine)
    first = triton_server.up(engine)
    manifest = engine / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    second = triton_server.up(engine)
    assert first.pid != second.pid
    assert not psutil.pid_exists(first.server_pid)


def _until_started_again(info: ServerInfo) -> ServerInfo:
    """The next server of the same supervisor, ready."""
    while int((Path(info.log).parent / PID_FILE).read_text()) == info.server_pid:
        time.sleep(0.01)
    again = triton_server.status(wait_s=WAIT_S)
    assert again is not None
    return again


@pytest.mark.parametrize("part", ["tritonserver", "triton_python_backend_stub"])
def test_a_server_whose_part_was_killed_is_started_again(
    engine_dir: Path, home: Path, part: str
) -> None:
    """A server without its stub said that it was ready, and answered no request for good."""
    info = triton_server.up(engine_dir)
    before = set(_shared_memory(info))
    (killed,) = (each for each in _processes(home) if each.name() == part)
    killed.kill()
    again = _until_started_again(info)
    assert (again.pid, again.grpc_port, again.id) == (info.pid, info.grpc_port, info.id)
    assert len(_processes(home)) == 3
    assert _shared_memory(info)
    assert not {each for each in before if each.exists()} - set(_shared_memory(info))
    assert "the server is started again (death 1 of" in reason_in(Path(info.log))
    assert triton_server.up(engine_dir) == again
    assert triton_server.down()
    _wait_until_gone(home)
    assert not _shared_memory(info)


def test_up_waits_for_a_server_that_is_started_again(engine_dir: Path, home: Path) -> None:
    info = triton_server.up(engine_dir)
    os.kill(info.server_pid, signal.SIGKILL)
    again = triton_server.up(engine_dir)
    assert again.pid == info.pid
    assert again.server_pid != info.server_pid
    assert triton_server.status() == again


def test_a_server_that_dies_again_and_again_is_started_each_time(
    engine_dir: Path, home: Path
) -> None:
    """Six hostile requests within ten minutes ended it for good."""
    info = triton_server.up(engine_dir)
    pids = [info.server_pid]
    for _ in range(3):
        os.kill(info.server_pid, signal.SIGKILL)
        info = _until_started_again(info)
        pids.append(info.server_pid)
    assert len(set(pids)) == 4
    assert "(death 3 of the last 10 minutes)" in reason_in(Path(info.log))
    assert triton_server.down()
    _wait_until_gone(home)


def test_a_killed_supervisor_takes_its_server_along_and_is_reported(
    engine_dir: Path, home: Path
) -> None:
    info = triton_server.up(engine_dir)
    os.kill(info.server_pid, signal.SIGKILL)
    info = _until_started_again(info)  # so that its log holds the reason of an earlier death
    supervisor = psutil.Process(info.pid)
    supervisor.kill()  # no process is left to clear up
    supervisor.wait(WAIT_S)
    with pytest.raises(ServerError, match=r"died.*compllm up") as caught:
        triton_server.status()
    assert f"its supervisor (process {info.pid}) is gone" in str(caught.value)
    assert "SIGKILL" not in str(caught.value)
    assert not triton_server.down()
    _wait_until_gone(home)
    assert not _shared_memory(info)


def test_a_clock_that_is_set_does_not_make_a_server_look_dead(
    engine_dir: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up` killed a live server after the clock had been set by a second."""
    info = triton_server.up(engine_dir)
    monkeypatch.setattr(psutil, "boot_time", lambda: 0.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert triton_server.up(engine_dir) == info


def test_shared_memory_and_models_are_for_the_owner_alone(engine_dir: Path, home: Path) -> None:
    """Any client could register the server's own memory and have outputs written into it."""
    info = triton_server.up(engine_dir, http_port=0)
    with InferenceServerClient(info.grpc_url) as client:
        for call in (
            client.get_system_shared_memory_status,
            client.get_model_repository_index,
            client.get_log_settings,
            client.get_trace_settings,
        ):
            with pytest.raises(InferenceServerException, match="compllm-admin"):
                call()
        assert client.get_model_config("tensorrt_llm")
    for path in ("/v2/systemsharedmemory/status", "/v2/logging", "/v2/trace/setting"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(info.http_url + path)
        with caught.value as refused:
            assert refused.code == 403
    assert [each["is_ready"] for each in models(info)] == [True]
    assert stat.S_IMODE((paths.run_dir() / "server.json").stat().st_mode) == 0o600
    with urllib.request.urlopen(info.http_url + "/v2") as told:
        assert info.shm_prefix not in told.read().decode()


def test_http_is_closed_until_a_port_is_asked_for(engine_dir: Path, home: Path) -> None:
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


def test_killed_owner_takes_its_server_along(engine_dir: Path, home: Path) -> None:
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
        assert len(_processes(home)) == 3
        owner.kill()
    _wait_until_gone(home)
    assert not list(Path("/dev/shm").glob(f"{prefix}*"))
    assert not list(paths.run_dir().glob("owned-*"))


def test_server_outlives_the_process_that_started_it_only_when_it_is_ready(
    engine_dir: Path, home: Path
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
    _wait_until_gone(home)
    assert triton_server.status() is None
    subprocess.run([*command, "whole"], check=True)
    info = triton_server.status()
    assert info is not None
    assert psutil.pid_exists(info.server_pid)


def test_owned_server_gives_way_on_its_cores_and_ends_with_its_block(
    engine_dir: Path, home: Path
) -> None:
    """With all cores taken by the engine, one child in a hundred started 10 ms after its parent."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with triton_server.running(engine_dir) as info:
        assert triton_server.status() is None
        assert psutil.pid_exists(info.server_pid)
        stubs = [each for each in _processes(home) if "python_backend_stub" in each.name()]
        assert [stub.nice() for stub in stubs] == [max(own, NICENESS)]
        assert psutil.Process(info.server_pid).nice() == own  # it carries messages
    _wait_until_gone(home)
    assert not list(paths.run_dir().glob("owned-*"))


def test_an_engine_of_niceness_0_gives_way_to_no_process(engine_dir: Path, home: Path) -> None:
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with triton_server.running(engine_dir, is_shared=False, options={"niceness": 0}):
        assert {process.nice() for process in _processes(home)} == {own}


def test_impossible_niceness_leaves_no_server_behind(engine_dir: Path, home: Path) -> None:
    with (
        pytest.raises(ConfigError, match="niceness is 50"),
        triton_server.running(engine_dir, is_shared=False, options={"niceness": 50}),
    ):
        pytest.fail("a server of an impossible setting started")
    _wait_until_gone(home)


def test_taken_port_is_named(engine_dir: Path, home: Path) -> None:
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=f"HTTP port {port} cannot be used"):
            triton_server.up(engine_dir, http_port=port)
    assert not _processes(home)


def test_engine_that_does_not_load_gives_its_reason(engine_dir: Path, home: Path) -> None:
    broken = home / "broken"
    shutil.copytree(engine_dir, broken)
    (broken / "weights.safetensors").write_bytes(b"no weights")
    with pytest.raises(ServerError, match=r"did not start: .*weights") as caught:
        triton_server.up(broken)
    assert "\n" not in str(caught.value)
    assert triton_server.status() is None
    _wait_until_gone(home)


def test_foreign_program_at_the_port_is_not_taken_for_the_server(
    engine_dir: Path, home: Path
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
    _wait_until_gone(home)
    assert not psutil.pid_exists(info.server_pid)
