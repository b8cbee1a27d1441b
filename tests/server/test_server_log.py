"""The log of a server: one file a start, without noise, and the reason of a failure out of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compllm.server import server_log, supervisor


@pytest.mark.parametrize(
    ("log", "reason"),
    [
        ("", ""),
        (
            'I1 x] "fine"\nE1122 a.cc:9] "failed to load \'tensorrt_llm\' version 1: Internal: '
            'ArtefactError: no weights\\n\\nAt:\\n  model.py(3): initialize\\n"\nerror: other\n',
            ": ArtefactError: no weights",
        ),
        ("I1 x] fine\nerror: creating server: Internal\n", ": creating server: Internal"),
        ("sh: tritonserver: not found\n\n", ": sh: tritonserver: not found"),
        # All that a server says that was killed when it was ready.
        (
            'I1122 14:20:35 8 compllm] "start 2026-11-22T14:20:35Z: engine /e, HTTP 1"\n'
            'W1122 14:20:36 9 a.cc:2] "Unable to allocate"\n'
            "\n+---+\n| a |\n+---+\n\n"
            'I1122 14:20:37 9 b.cc:3] "Started HTTPService"\n',
            "",
        ),
    ],
)
def test_reason_is_found_in_the_log(tmp_path: Path, log: str, reason: str) -> None:
    (tmp_path / "log").write_text(log)
    assert server_log.reason_in(tmp_path / "log") == reason


def test_the_reason_of_a_death_is_none_of_what_followed_the_restart(tmp_path: Path) -> None:
    log = tmp_path / "log"
    death = f'E1122 1 1 compllm] "tritonserver ended{supervisor.STARTED_AGAIN} (death 1)"\n'
    log.write_text(death)
    assert server_log.reason_in(log).startswith(": tritonserver ended")
    assert server_log.reason_in(log, since_restart=True) == ""
    log.write_text(death + 'E1122 2 a.cc:1] "no more memory"\n')
    assert server_log.reason_in(log, since_restart=True) == ": no more memory"


def test_each_start_has_a_file_and_the_last_few_are_kept(tmp_path: Path) -> None:
    for number in range(8):
        log = server_log.rotate(tmp_path)
        assert not log.exists()
        server_log.write_header(log, Path(f"/engine-{number}"), "", {"gRPC": 1, "HTTP": 2})
    kept = sorted(each for each in tmp_path.iterdir())
    assert [each.name for each in kept] == ["server.log", *(f"server.log.{k}" for k in range(1, 5))]
    assert all(server_log.is_log(each) for each in kept)
    newest_first = [each.read_text() for each in kept]
    assert all(f"engine /engine-{7 - k}," in text for k, text in enumerate(newest_first))


def test_header_says_what_was_started_and_is_no_reason(tmp_path: Path) -> None:
    log = server_log.rotate(tmp_path)
    server_log.write_header(log, Path("/e"), "/mine.toml", {"gRPC": 1, "HTTP": 2})
    (line,) = log.read_text().splitlines()
    assert line.endswith('Z: engine /e, settings /mine.toml, gRPC 1, HTTP 2"')
    assert server_log.reason_in(log) == ""


def test_cuda_error_of_a_server_without_a_gpu_is_not_logged(tmp_path: Path) -> None:
    """An error line at each start of a product that needs no GPU. Every other line is there."""
    server = "import sys; print('E1 s] \"CudaDriverHelper has not been initialized.\"'); " + (
        "print('I1 s] fine'); sys.stdout.flush(); print('E1 s] bad', file=sys.stderr, end='')"
    )
    command = [sys.executable, "-S", "-E", supervisor.__file__, str(os.getpid()), "no-such-prefix"]
    done = subprocess.run(
        [*command, str(tmp_path), sys.executable, "-c", server],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert (tmp_path / "server.log").read_text() == "I1 s] fine\nE1 s] bad\n"
    assert done.stdout.strip().isdigit()


def test_a_server_whose_engine_is_dead_is_started_again(tmp_path: Path) -> None:
    """It answered each request with an error until a person came."""
    server = (
        "import time\nprint('the engine is dead: three steps failed', flush=True)\ntime.sleep(60)\n"
    )
    command = [sys.executable, "-S", "-E", supervisor.__file__, str(os.getpid()), "no-such-prefix"]
    with subprocess.Popen([*command, str(tmp_path), sys.executable, "-c", server]) as process:
        log = tmp_path / "server.log"
        _until(lambda: "three steps failed" in server_log.read_log(log))
        process.send_signal(signal.SIGUSR1)  # released: from here on it is started again
        _until(
            lambda: "the engine is dead; the server is started again (death 2 of" in log.read_text()
        )
        process.terminate()
        process.wait(30)


def test_a_model_that_is_loaded_again_is_no_death(tmp_path: Path) -> None:
    """The old stub of a model ends when the new one is there; a stub that is missing is a death."""
    for name in ("one", "two"):
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "config.pbtxt").touch()
    server = f"""
import subprocess, sys, time
from pathlib import Path
def stub():
    return subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(90)"])
def wait_for(name):
    while not Path({str(tmp_path)!r}, name).exists():
        time.sleep(0.02)
stubs = [stub(), stub()]
print("up", flush=True)
wait_for("reload")
stubs.append(stub())
stubs[0].kill(); stubs[0].wait()
print("reloaded", flush=True)
wait_for("die")
stubs[1].kill(); stubs[1].wait()
time.sleep(90)
"""
    command = [sys.executable, "-S", "-E", supervisor.__file__, str(os.getpid()), "no-such-prefix"]
    with subprocess.Popen([*command, str(tmp_path), sys.executable, "-c", server]) as process:
        log = tmp_path / "server.log"
        _until(lambda: "up" in server_log.read_log(log))
        process.send_signal(signal.SIGUSR1)
        time.sleep(1.5)  # the supervisor looks for stubs each second
        (tmp_path / "reload").touch()
        _until(lambda: "reloaded" in log.read_text())
        time.sleep(1.5)
        assert "started again" not in log.read_text()
        (tmp_path / "die").touch()
        _until(lambda: "a model's Python process" in log.read_text())
        process.terminate()
        process.wait(30)


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
