"""Parent of one tritonserver process: when either side ends, nothing of the server is left behind.

`triton_server.py` runs this file as a script of its own, with the standard library alone:

    python supervisor.py OWNER SHM_PREFIX DIRECTORY COMMAND...

OWNER is the process id, our parent's, whose death ends the server too (its files in DIRECTORY are
removed then); SIGUSR1 lets the server outlive it, SIGTERM ends the server. Prints the server's
process id on stdout, then waits. It exists because a killed owner cannot clean up, PR_SET_PDEATHSIG
follows a thread rather than a process, and a killed tritonserver leaves its Python stub alive for
seconds and its shared memory for ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import BinaryIO

# What a tritonserver without a GPU logs as an error at each start, whatever its options: its CUDA
# helper finds no driver, which a server on the CPU does not need.
STARTUP_NOISE = b"CudaDriverHelper has not been initialized"
_PR_SET_PDEATHSIG = 1
_LOG_S = 1.0
_GRACE_S = 8.0  # from asking the server to end until it is killed; above tritonserver's own limit


def _die_with_parent() -> None:
    """Runs in the child between fork and exec. The parent has but one thread to die."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _copy_log(source: BinaryIO) -> None:
    """The server's output to our stderr, which is the log, line by line, without the noise."""
    for line in source:
        if STARTUP_NOISE not in line:
            with contextlib.suppress(OSError):  # a full disk must not stop the server
                os.write(2, line)


def _wait_for_end(server: subprocess.Popen[bytes], owner: int, wake: int) -> bool:
    """Block until the server ended, a signal asks for the end, or the owner died (then True)."""
    poll = select.poll()
    server_fd = os.pidfd_open(server.pid)
    for fd in (server_fd, owner, wake):
        poll.register(fd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll()}
        if wake in ready and set(os.read(wake, 64)) == {signal.SIGUSR1}:
            poll.unregister(owner)
            continue
        return owner in ready


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_GRACE_S)
    # Its group holds the Python stubs too, whether or not the server itself still lives.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def main(argv: list[str]) -> int:
    owner_pid, shm_prefix, directory, command = int(argv[0]), argv[1], Path(argv[2]), argv[3:]
    wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    owner = os.pidfd_open(owner_pid)
    if os.getppid() != owner_pid:
        return 1  # the owner died before it could be watched
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=_die_with_parent,
    )
    assert server.stdout is not None
    copier = threading.Thread(target=_copy_log, args=(server.stdout,), daemon=True)
    copier.start()
    print(server.pid, flush=True)
    os.close(1)  # a reader of the number sees the end of the output
    is_orphan = _wait_for_end(server, owner, wake)
    _stop(server)
    copier.join(_LOG_S)  # its input ends with the last process that the server started
    for leftover in Path("/dev/shm").glob(f"{shm_prefix}*"):
        leftover.unlink(missing_ok=True)
    if is_orphan:
        shutil.rmtree(directory, ignore_errors=True)
    return server.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
