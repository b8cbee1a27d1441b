"""Places that cannot be written are named with the remedy; nothing is left in those that can."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compllm import storage
from compllm.build_scripts import build_openvino, fetch_base
from compllm.build_scripts.staging import exclusive
from compllm.cli import app as cli
from compllm.cli import doctor, prepare
from compllm.errors import ConfigError
from compllm.server import triton_server

# Nothing can be made there, by root either.
UNWRITABLE = Path("/proc/compllm-home")


@pytest.fixture(params=["a file", "below a file", "unwritable"])
def home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "file"
    file.touch()
    places = {"a file": file, "below a file": file / "home", "unwritable": UNWRITABLE}
    home = places[request.param]
    monkeypatch.setenv("COMPLLM_HOME", str(home))
    for name in ("COMPLLM_CATALOGUE", "COMPLLM_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return home


def test_place_that_can_be_made_is_writable_and_stays_as_it_was(tmp_path: Path) -> None:
    storage.require_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())


def test_folder_without_the_right_to_write_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(storage.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(ConfigError, match=r"Permission denied.*: name a directory"):
        storage.require_writable(tmp_path)


@pytest.mark.parametrize(
    "writes",
    [
        prepare.prepare,
        fetch_base.ensure_base,
        fetch_base.ensure_encoder,
        lambda: fetch_base.download(fetch_base.BASE),
        lambda: fetch_base.select_checkpoint(None),
        lambda: exclusive(storage.paths.engine_dir()).__enter__(),
    ],
)
def test_home_that_cannot_be_written_is_named_with_the_remedy(
    writes: Callable[[], object], home: Path
) -> None:
    with pytest.raises(ConfigError, match="set COMPLLM_HOME to a directory") as caught:
        writes()
    assert str(home) in str(caught.value)


def test_a_server_of_ones_own_names_the_home_too(home: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "manifest.json").touch()
    with (
        pytest.raises(ConfigError, match="set COMPLLM_HOME to a directory") as caught,
        triton_server.running(engine),
    ):
        pass
    assert str(home) in str(caught.value)


@pytest.mark.parametrize("command", [["up"], ["train", "lora", "--dataset", "d", "--out", "o"]])
def test_commands_that_write_there_say_so_in_one_line(
    command: list[str], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(command) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith(f"error: cannot write to {home}")
    assert "set COMPLLM_HOME to a directory that you may write" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("script", [build_openvino, fetch_base])
def test_scripts_that_write_there_say_so_in_one_line(
    script: object, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([]) == 1  # type: ignore[attr-defined]
    said = capsys.readouterr().err
    assert said.startswith(f"error: cannot write to {home}")
    assert said.count("\n") == 1


def test_commands_that_only_read_find_no_server(home: Path) -> None:
    assert cli.run(["down"]) == 0
    assert cli.run(["status"]) == 1


def test_doctor_reports_it(home: Path) -> None:
    (disk,) = (check for check in doctor.examine() if check.name == "disk")
    assert disk.status == "missing"
    assert str(home) in disk.found
    assert "COMPLLM_HOME" in disk.remedy


@pytest.mark.parametrize("command", [["up"], ["up", "--http-port", "0"]])
def test_a_full_disk_at_up_is_one_line_and_leaves_nothing_half_written(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """It printed shutil's list of tuples."""
    engine = tmp_path / "engines" / "embedded"
    engine.mkdir(parents=True)
    (engine / "manifest.json").write_text("{}")
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    monkeypatch.setattr(prepare, "prepare", lambda _: None)
    copy = shutil.copy2

    def copy_until_full(source: str, target: str, **more: Any) -> Any:
        if "config.pbtxt" in str(source):
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        return copy(source, target, **more)

    copytree = shutil.copytree

    def copy_tree(*arguments: Any, **more: Any) -> Any:
        is_inner = len(arguments) > 2  # it calls itself for folders
        changed = {} if is_inner else {"copy_function": copy_until_full}
        return copytree(*arguments, **more, **changed)

    monkeypatch.setattr(shutil, "copytree", copy_tree)
    assert cli.run(command) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: no space left for ")
    assert said.endswith("config.pbtxt: free some, or set COMPLLM_HOME to another disk\n")
    assert said.count("\n") == 1
    assert not list((tmp_path / "run" / "server").iterdir())
    assert triton_server.status() is None


def test_a_limit_on_the_size_of_files_is_named_as_such(tmp_path: Path) -> None:
    """A real one, of another process, at the same place."""
    program = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))\n"
        "from compllm.cli import app, prepare\n"
        "prepare.prepare = lambda _: None\n"
        "sys.exit(app.run(['up']))\n"
    )
    engine = tmp_path / "engines" / "embedded"
    engine.mkdir(parents=True)
    (engine / "manifest.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-B", "-c", program],
        env=os.environ | {"COMPLLM_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: no space left for ")
    assert "(File too large)" in line
    assert not list((tmp_path / "run" / "server").iterdir())


def test_os_error_of_a_path_names_path_and_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError) as caught:
        (tmp_path / "file" / "x").mkdir()
    reason = storage.explain_os_error(caught.value)
    assert reason == (
        f"cannot use {tmp_path}/file/x: Not a directory: name a directory that you may write"
    )
    assert storage.explain_os_error(OSError(errno.EIO, "Input/output error")) is None
