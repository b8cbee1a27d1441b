"""What a server is made of and found by, without starting one (integration/ does that)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from compllm import paths
from compllm.cli import app as cli
from compllm.errors import ServerError
from compllm.frontends.triton.core_tensors import INPUTS
from compllm.server import triton_files, triton_process, triton_server, triton_state


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    monkeypatch.delenv("TRITONSERVER", raising=False)


def test_without_a_server_there_is_no_status_and_nothing_to_stop() -> None:
    assert triton_server.status() is None
    assert not triton_server.down()


def test_missing_engine_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="engines/embedded does not exist"):
        triton_server.up()
    with (
        pytest.raises(ServerError, match=r"holds no manifest\.json"),
        triton_server.running(tmp_path),
    ):
        pass


@pytest.mark.parametrize(("seconds", "is_dying"), [(0.2, True), (60, False)])
def test_a_server_that_was_just_killed_counts_as_dead(
    seconds: float, is_dying: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine `up` found it alive yet, met a reset connection and gave up."""
    monkeypatch.setattr(triton_server, "DYING_S", 20.0 if is_dying else 0.05)
    process = subprocess.Popen([sys.executable, "-c", f"import time; time.sleep({seconds})"])
    try:
        with socket.create_server((triton_state.HOST, 0)) as closed:
            port = closed.getsockname()[1]
        started = triton_process.start_ticks(process.pid)
        info = triton_state.ServerInfo(
            process.pid, started, process.pid, "an-id", port, port, port, "a.log"
        )
        if is_dying:
            assert not triton_server.answers(info)
        else:
            with pytest.raises(ServerError, match="does not answer"):
                triton_server.answers(info)
    finally:
        process.kill()
        process.wait()


def test_a_killed_server_counts_as_dead_though_its_supervisor_lives() -> None:
    """`up` and `status` gave up after a second, while the supervisor started it again."""
    server = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.2)"])
    with server, socket.create_server((triton_state.HOST, 0)) as closed:
        port = closed.getsockname()[1]
        closed.close()
        ticks = triton_process.start_ticks(os.getpid())
        info = triton_state.ServerInfo(
            os.getpid(), ticks, server.pid, "an-id", port, port, port, "a.log"
        )
        assert not triton_server.answers(info)


def test_unreadable_state_is_an_error_with_its_path() -> None:
    paths.run_dir().mkdir(parents=True)
    (paths.run_dir() / "server.json").write_text("{")
    with pytest.raises(ServerError, match=r"server\.json is not readable"):
        triton_server.status()


def test_named_binary_must_be_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITONSERVER", str(tmp_path / "none"))
    with pytest.raises(ServerError, match=r"\$TRITONSERVER is .*none"):
        triton_files.find_tritonserver()


def test_named_binary_comes_first_then_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert triton_files.find_tritonserver().parts[-4:-1] == ("pytriton", "tritonserver", "bin")
    binary = tmp_path / "mine"
    binary.touch(mode=0o755)
    monkeypatch.setenv("TRITONSERVER", str(binary))
    assert triton_files.find_tritonserver() == binary


def test_the_copy_of_the_server_knows_the_status_header_by_another_name(tmp_path: Path) -> None:
    binary = tmp_path / "tritonserver"
    binary.write_bytes(b"\0triton_grpc_error\0 the triton_grpc_error mode\0")
    name = triton_state.status_header("0123456789abcdef" * 2)
    copy = triton_files.without_status_header(binary, tmp_path / "bin", name)
    expected = [b"", name.encode(), b" the %s mode" % name.encode(), b""]
    assert copy.read_bytes().split(b"\0") == expected
    assert copy.stat().st_mode & 0o777 == 0o700
    binary.write_text("#!/bin/sh")  # it may need its folder
    assert triton_files.without_status_header(binary, tmp_path / "bin", name) == binary
    with pytest.raises(ValueError, match="not of 17 characters"):
        triton_files.without_status_header(binary, tmp_path / "bin", "short")


def test_backend_directory_has_the_stub_of_this_interpreter(tmp_path: Path) -> None:
    backends = triton_files.make_backends(triton_files.find_tritonserver(), tmp_path / "backends")
    stub = (backends / "python" / "triton_python_backend_stub").resolve()
    assert stub.parent.name == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert (backends / "python" / "libtriton_python.so").is_file()


def test_binary_without_backend_is_refused(tmp_path: Path) -> None:
    binary = tmp_path / "bin" / "tritonserver"
    with pytest.raises(ServerError, match="no Python backend beside it"):
        triton_files.make_backends(binary, tmp_path / "backends")


def test_own_libpython_and_own_interpreter_come_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    env = triton_files.environment(triton_files.find_tritonserver())
    libpython, package, lib, last = env["LD_LIBRARY_PATH"].split(os.pathsep)
    assert list(Path(libpython).glob("libpython3*"))
    assert Path(package).name == "nvidia_pytriton.libs"
    assert lib.endswith("tritonserver/lib")
    assert last == "/elsewhere"
    assert env["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/usr/bin"


def test_repository_is_the_template_filled_in(tmp_path: Path) -> None:
    values = {
        "engine_dir": '/a "b"\\c',
        "tokenizer_dir": "/t",
        "executor_options": '{"max_batch_size": 4}',
    }
    models = triton_files.write_repository(tmp_path / "models", values)
    config = (models / "tensorrt_llm" / "config.pbtxt").read_text()
    assert "${" not in config
    assert r'string_value: "/a \"b\"\\c"' in config
    assert r'string_value: "{\"max_batch_size\": 4}"' in config
    assert (models / "tensorrt_llm" / "1" / "model.py").is_file()


def test_repository_declares_every_input_of_the_contract() -> None:
    config = (paths.resource_dir("triton_repo") / "tensorrt_llm" / "config.pbtxt").read_text()
    declared = text_format.Parse(config, model_config_pb2.ModelConfig()).input
    assert sorted(each.name for each in declared) == sorted(INPUTS)


def _live_state(supervisor: int, server: int, config: str = "") -> triton_state.ServerInfo:
    """What `up` leaves of a server of the default engine, with these processes in its place."""
    started = triton_process.start_ticks(supervisor)
    engine = str(paths.engine_dir().resolve())
    info = triton_state.ServerInfo(
        supervisor, started, server, "an-id", 1, 2, 3, "a.log", engine, has_face=True
    )
    info = replace(info, config_file=config)
    paths.run_dir().mkdir(parents=True)
    triton_state.write_state(info)
    return info


def test_up_with_other_settings_is_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It built the other catalogue's engine into the folder of the live server first. The process
    it names is the one that `compllm status` names, not the supervisor."""
    other = tmp_path / "other.toml"
    other.write_text("[limits]\nmax_nodes = 9\n")
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(sleeps) as supervisor, subprocess.Popen(sleeps) as server:
        info = _live_state(supervisor.pid, server.pid, "/mine.toml")
        assert triton_server.check_up(has_face=True) == info
        assert cli.run(["up", "--config", str(other)]) == 1
        supervisor.kill()
        server.kill()
    said = capsys.readouterr().err
    assert said.startswith(f"error: a server (process {server.pid}) is already running with")
    assert "settings /mine.toml" in said
    assert {each.name for each in tmp_path.iterdir()} == {"run", "other.toml"}


def test_up_at_a_taken_port_is_refused_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server((triton_state.HOST, 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.run(["up", "--http-port", str(port)]) == 1
    assert f"HTTP port {port} cannot be used" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_start_clears_all_but_the_logs_of_earlier_ones(tmp_path: Path) -> None:
    """Each start wiped the log of the one that had failed."""
    directory = tmp_path / "server"
    triton_process.clear(directory)
    (directory / "models" / "m").mkdir(parents=True)
    for name in ("server.log", "server.log.1", "server.log.old", "other"):
        (directory / name).touch()
    (directory / "link").symlink_to(tmp_path)
    triton_process.clear(directory)
    assert {each.name for each in directory.iterdir()} == {"server.log", "server.log.1"}
    assert tmp_path.is_dir()


def test_impossible_port_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ServerError, match="gRPC port 70000 cannot be used"):
        triton_server.up(tmp_path, grpc_port=70000)
