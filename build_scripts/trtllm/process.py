"""One command of the build: its output to a log, its failure in one line.

Under the runner. An interrupted build takes the command, and what that started, down with it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

from compllm.build_scripts.trtllm.commands import Command
from compllm.errors import ArtefactError

_FULL = ("No space left on device", "Disk quota exceeded")
_OUT_OF_MEMORY = ("CUDA out of memory", "OutOfMemory", "out of memory")
_FULL_BYTES = 1 << 20  # with less than this left, a disk is full to every tool here
_TAIL_BYTES = 65536


def run(command: Command, log: Path, directory: Path) -> None:
    """Run it in `directory` (upstream's tools leave caches where they stand). Raises ArtefactError
    that names the log."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "wb") as sink:
        try:
            process = subprocess.Popen(
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                cwd=directory,
                start_new_session=True,  # a group of its own, to be ended as a whole
            )
        except OSError as error:
            raise ArtefactError(f"{command.argv[0]} cannot run: {error.strerror}") from error
        try:
            status = process.wait()
        except BaseException:
            _end(process)
            raise
    if status != 0:
        raise ArtefactError(f"{command.label} failed: {_reason(status, log)}")


def _end(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _reason(status: int, log: Path) -> str:
    """Why, from the end of the log; and where to read more."""
    with open(log, "rb") as handle:
        handle.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = handle.read().decode(errors="replace").splitlines()
    told = [line.strip() for line in lines if line.strip()]
    more = f"; all it said is in {log}"
    # A log on the disk that is full does not report it.
    is_full = shutil.disk_usage(log).free < _FULL_BYTES
    if is_full or any(sign in line for line in told for sign in _FULL):
        return f"no space left on the disk: free some, or choose another place with --out{more}"
    if any(sign in line for line in told for sign in _OUT_OF_MEMORY):
        return f"out of memory: {told[-1][:200]}{more}"
    if status < 0:
        name = signal.Signals(-status).name
        return f"ended by {name} (out of memory, where nobody sent it){more}"
    last = told[-1][:200] if told else "it gave no reason"
    return f"exit status {status}: {last}{more}"
