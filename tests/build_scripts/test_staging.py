"""A result appears whole or not at all, whatever ends the run."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from compllm.build_scripts import staging
from compllm.errors import ConfigError


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_result_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with staging.staged_directory(target) as partial:
        (partial / "file").write_text("new")
        assert not target.exists()
    assert (target / "file").read_text() == "new"
    assert names(tmp_path) == ["result"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_failure_leaves_the_old_result(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "result"
    target.mkdir()
    (target / "file").write_text("old")

    def fail() -> None:
        with staging.staged_directory(target) as partial:
            (partial / "file").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert (target / "file").read_text() == "old"
    assert names(tmp_path) == ["result"]


def test_leftovers_of_a_killed_run_are_cleared(tmp_path: Path) -> None:
    (tmp_path / "result.partial").mkdir()
    (tmp_path / "result.partial" / "half").write_text("half")
    with staging.staged_directory(tmp_path / "result") as partial:
        assert names(partial) == []
    assert names(tmp_path) == ["result"]


def test_result_moved_aside_by_a_killed_run_comes_back(tmp_path: Path) -> None:
    (tmp_path / "result.old").mkdir()
    (tmp_path / "result.old" / "file").write_text("old")
    staging.recover(tmp_path / "result")
    assert (tmp_path / "result" / "file").read_text() == "old"


def test_old_result_is_dropped_when_the_new_one_is_in_place(tmp_path: Path) -> None:
    (tmp_path / "result.old").mkdir()
    (tmp_path / "result").mkdir()
    staging.recover(tmp_path / "result")
    assert names(tmp_path) == ["result"]


def test_terminated_run_cleans_up_and_says_so(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal
from compllm.build_scripts import staging
def work():
    with staging.staged_directory(pathlib.Path({str(tmp_path / "result")!r})):
        os.kill(os.getpid(), signal.{signal.SIGTERM.name})
raise SystemExit(staging.run_script(work))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert done.stderr == "terminated: nothing half-written was left, run it again to continue\n"
    assert names(tmp_path) == []


def test_second_process_waits_for_the_first(tmp_path: Path) -> None:
    target = tmp_path / "result"
    code = f"""
import pathlib
from compllm.build_scripts import staging
with staging.exclusive(pathlib.Path({str(target)!r})):
    print("in")
"""
    with staging.exclusive(target):
        other = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert other.stderr is not None
        # Its line appears only once it has found the lock taken.
        assert other.stderr.readline() == f"waiting for another process that writes {target}\n"
        assert other.poll() is None
    out, _ = other.communicate(timeout=60)
    assert out == "in\n"


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        ("I/O error: No space left on device (os error 28)", "no space left for"),
        ("odd", "Error while serializing: odd"),
    ],
)
def test_full_disk_is_recognised_in_the_words_of_safetensors(
    tmp_path: Path, cause: str, said: str
) -> None:
    with (
        pytest.raises(ConfigError, match=f"^building: {said}"),
        staging.saving("building", tmp_path),
    ):
        raise SafetensorError(f"Error while serializing: {cause}")


def test_too_little_space_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs 1000000000000 MB in .*missing"):
        staging.require_free_space(tmp_path / "missing", 10**18, "fetching")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.ENOSPC, "no space left for /x: free some"),
        (errno.EACCES, "cannot write /x"),
        (errno.EIO, "Input/output error: /x"),
    ],
)
def test_os_errors_become_one_line(
    capsys: pytest.CaptureFixture[str], code: int, said: str
) -> None:
    def work() -> None:
        raise OSError(code, os.strerror(code), "/x")

    assert staging.run_script(work) == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
