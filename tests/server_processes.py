"""What a real server leaves on this machine: its processes and its shared memory."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import psutil

from compllm.server import triton_server
from compllm.server.supervisor import PID_FILE
from compllm.server.triton_state import ServerInfo

WAIT_S = 30.0


def wait_until_gone(home: Path) -> None:
    """Until no process out of this home is left: the supervisor, the server, the stub."""
    _, alive = psutil.wait_procs(processes(home), timeout=WAIT_S)
    assert not alive
    assert not processes(home)


def processes(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            is_ours = any(str(home) in part for part in process.cmdline())
            if is_ours and process.status() != psutil.STATUS_ZOMBIE and process.pid != os.getpid():
                found.append(process)
    return found


def shared_memory(info: ServerInfo) -> list[Path]:
    return list(Path("/dev/shm").glob(f"{info.shm_prefix}*"))


def temporary_folders() -> set[str]:
    """Those that Triton's Python backend makes, of every server on this machine."""
    return {each.name for each in Path("/tmp").iterdir() if each.name.startswith("python_env_")}


def until_started_again(info: ServerInfo) -> ServerInfo:
    """The next server of the same supervisor, ready."""
    while int((Path(info.log).parent / PID_FILE).read_text()) == info.server_pid:
        time.sleep(0.01)
    again = triton_server.status(wait_s=WAIT_S)
    assert again is not None
    return again
