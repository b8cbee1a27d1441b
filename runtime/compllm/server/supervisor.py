"""Parent of one tritonserver process: starts it again when a part of it dies, and leaves nothing of
it behind when it ends.

`triton_process.py` runs this file as a script of its own, with the standard library alone:

    python supervisor.py OWNER SHM_PREFIX DIRECTORY COMMAND...

OWNER is the process id, our parent's, whose death ends the server too (its files in DIRECTORY are
removed then). SIGUSR1 lets the server outlive its owner; from then on the supervisor starts it
again, with the same command, when it or one of its Python stubs dies. SIGTERM ends the server, once
the commands that have queries under way have ended or 10 s are over.
Prints the server's process id on stdout, keeps it in DIRECTORY/server.pid, and waits.

It exists because a killed owner cannot clean up, PR_SET_PDEATHSIG follows a thread rather than a
process, a killed tritonserver leaves its Python stub alive for seconds and its shared memory for
ever, and a tritonserver whose stub was killed says that it is ready and answers no request.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import fcntl
import logging.handlers
import os
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

# What a tritonserver without a GPU logs as an error at each start, whatever its options: its CUDA
# helper finds no driver, which a server on the CPU does not need.
STARTUP_NOISE = b"CudaDriverHelper has not been initialized"
DEAD_ENGINE = b"the engine is dead"  # how a line begins that an engine says when it gives up
PID_FILE = "server.pid"
RESTARTS_S = 600.0  # deaths within this time make the pauses longer
LOG_FILE = "server.log"
STARTED_AGAIN = "; the server is started again"  # in a line about a death
CLIENTS_FILE = "clients.lock"  # commands with queries hold it shared
_LOG_BYTES = 16_000_000  # of one file of the log; a server that runs for months fills no disk
LOG_KEPT = 4  # earlier ones: server.log.1 is the latest of them
_TEMPORARY = Path("/tmp/python_env_*")  # whatever TMPDIR is
_PR_SET_PDEATHSIG = 1
_LOG_S = 1.0
_GRACE_S = 8.0  # from asking the server to end until it is killed; above tritonserver's own limit
_DRAIN_S = 10.0  # for queries of commands, before the server is asked to end
_DRAIN_STEP_S = 0.05
_LOOK_S = 1.0  # between two looks for new stubs
_LOOKS_S = 60.0  # after a start: all stubs are there when the server is ready
_PAUSES_S = (0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 15.0)  # before the first restart, the second...


def _die_with_parent() -> None:
    """Runs in the child between fork and exec. The parent has but one thread to die."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


class _Log:
    """The server's output and our own lines, in files of a bounded size. Never raises: a full disk
    must not stop the server."""

    def __init__(self, directory: Path) -> None:
        logging.raiseExceptions = False
        self.dead_engine, self._is_dead = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._handler = logging.handlers.RotatingFileHandler(
            directory / LOG_FILE, maxBytes=_LOG_BYTES, backupCount=LOG_KEPT, errors="replace"
        )

    def line(self, text: str) -> None:
        """One line, as it is."""
        record = logging.LogRecord("server", logging.INFO, "", 0, text, None, None)
        self._handler.handle(record)

    def error(self, text: str) -> None:
        """A line of our own, in the form of Triton's errors."""
        now = datetime.datetime.now(datetime.UTC)
        self.line(f'E{now:%m%d %H:%M:%S.%f} {os.getpid()} compllm] "{text}"')

    def copy(self, source: BinaryIO) -> None:
        """The server's output, line by line, without the noise."""
        for line in source:
            if line.startswith(DEAD_ENGINE):
                os.write(self._is_dead, b"x")
            if STARTUP_NOISE not in line:
                self.line(line.decode(errors="replace").rstrip("\n"))


@dataclass(slots=True)
class _End:
    """Why a server is watched no longer. fault: what died; empty: its end was asked for."""

    fault: str = ""
    is_orphan: bool = False


@dataclass(slots=True)
class _Watch:
    """What the supervisor waits for. owner: its pidfd; None: the server was released."""

    wake: int
    owner: int | None
    dead_engine: int  # readable when an engine has given up
    models: Path  # the model repository: each model has one stub
    stubs: dict[int, int] = field(default_factory=dict)  # pidfd -> process id

    def until_end(self, server: subprocess.Popen[bytes]) -> _End:
        """Block until the server or a stub of a released server died, a signal asks for the end, or
        the owner died."""
        poll = select.poll()
        server_fd = os.pidfd_open(server.pid)
        for fd in (server_fd, self.wake, *([] if self.owner is None else [self.owner])):
            poll.register(fd, select.POLLIN)
        with contextlib.suppress(BlockingIOError):
            os.read(self.dead_engine, 64)  # of the server before this one
        poll.register(self.dead_engine, select.POLLIN)
        last_look = time.monotonic() + _LOOKS_S
        try:
            while True:
                does_look = self.owner is None and time.monotonic() < last_look
                ready = {fd for fd, _ in poll.poll(_LOOK_S * 1000 if does_look else None)}
                if self.wake in ready:
                    if set(os.read(self.wake, 64)) != {signal.SIGUSR1}:
                        return _End()
                    if self.owner is not None:
                        poll.unregister(self.owner)
                        self.owner, last_look = None, time.monotonic() + _LOOKS_S
                        poll.register(self.dead_engine, select.POLLIN)
                elif self.owner in ready:
                    return _End(is_orphan=True)
                elif server_fd in ready:
                    return _End(f"tritonserver (process {server.pid}) {_how(server.wait())}")
                elif dead := [fd for fd in self.stubs if fd in ready]:
                    if self._is_missing(server.pid):
                        return _End(f"a model's Python process ({self.stubs[dead[0]]}) ended")
                    for fd in dead:  # of a model that was loaded again: the new one is there
                        poll.unregister(fd)
                        os.close(fd)
                        del self.stubs[fd]
                elif self.dead_engine in ready:
                    if self.owner is None:
                        return _End("the engine is dead")
                    poll.unregister(self.dead_engine)  # its owner's to report
                if self.owner is None:
                    self._look(server.pid, poll.register)
        finally:
            for fd in (server_fd, *self.stubs):
                os.close(fd)
            self.stubs.clear()

    def pause(self, seconds: float) -> bool:
        """Wait before a restart. False: a signal asks for the end meanwhile."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        return not poll.poll(seconds * 1000) or set(os.read(self.wake, 64)) == {signal.SIGUSR1}

    def _is_missing(self, server_pid: int) -> bool:
        """Whether a model has no stub. One that is loaded again has two for a while."""
        num_models = len(list(self.models.glob("*/config.pbtxt")))
        return num_models == 0 or len(_children(server_pid, with_dead=False)) < num_models

    def _look(self, server_pid: int, register: Callable[[int, int], None]) -> None:
        """Watch the stubs that are new."""
        for pid in _children(server_pid) - set(self.stubs.values()):
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                self.stubs[fd] = pid
                register(fd, select.POLLIN)


def _children(parent: int, *, with_dead: bool = True) -> set[int]:
    """Process ids. with_dead: also of those that have ended and were not waited for yet."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended just now
            fields = stat.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == parent and (with_dead or fields[0] != "Z"):
                found.add(int(stat.parent.name))
    return found


def _how(code: int) -> str:
    """How a process of this return code ended."""
    if code >= 0:
        return f"ended with code {code}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-code).name}"
    return f"was ended by signal {-code}"


def _start(
    command: list[str], directory: Path, log: _Log
) -> tuple[subprocess.Popen[bytes], threading.Thread]:
    """The server, whose process id is kept in its file, and the thread that copies its output."""
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
        preexec_fn=_die_with_parent,
    )
    partial = directory / f"{PID_FILE}.partial"
    partial.write_text(str(server.pid))
    partial.replace(directory / PID_FILE)
    assert server.stdout is not None
    copier = threading.Thread(target=log.copy, args=(server.stdout,), daemon=True)
    copier.start()
    return server, copier


def _drain(server: subprocess.Popen[bytes], directory: Path) -> None:
    """Wait for the commands that have queries under way. Triton itself waits for requests, and a
    query of a command is a row of them: between two of them the server would look idle."""
    try:
        file = os.open(directory / CLIENTS_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    deadline = time.monotonic() + _DRAIN_S
    try:
        while time.monotonic() < deadline and server.poll() is None:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            time.sleep(_DRAIN_STEP_S)
    finally:
        os.close(file)


def _stop(server: subprocess.Popen[bytes], *, does_ask: bool) -> None:
    """End what is left of the server. does_ask: it may end its requests first."""
    if does_ask and server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_GRACE_S)
    # Its group holds the Python stubs too, whether or not the server itself still lives.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def clear_temporary(directory: Path) -> None:
    """Remove the empty folder that Triton's Python backend makes at its start, and leaves behind
    when it is killed. Its name is random: the time tells it apart, of the server whose process id
    stands in `directory`."""
    with contextlib.suppress(OSError):
        start_s = (directory / PID_FILE).stat().st_mtime
        for folder in _TEMPORARY.parent.glob(_TEMPORARY.name):
            with contextlib.suppress(OSError):  # of another user, in use, or gone
                state = folder.stat()
                if state.st_uid == os.getuid() and -1.0 < state.st_mtime - start_s < _LOOKS_S:
                    folder.rmdir()


def _clear_shared_memory(prefix: str) -> None:
    for leftover in Path("/dev/shm").glob(f"{prefix}*"):
        leftover.unlink(missing_ok=True)


def _num_deaths(died_at: list[float]) -> int:
    """Note a death; how many there were within RESTARTS_S."""
    now = time.monotonic()
    died_at[:] = [each for each in died_at if now - each < RESTARTS_S] + [now]
    return len(died_at)


def main(argv: list[str]) -> int:
    owner_pid, shm_prefix, directory, command = int(argv[0]), argv[1], Path(argv[2]), argv[3:]
    os.umask(0o077)
    wake, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    owner = os.pidfd_open(owner_pid)
    if os.getppid() != owner_pid:
        return 1  # the owner died before it could be watched
    log = _Log(directory)
    watch = _Watch(wake, owner, log.dead_engine, directory / "models")
    server, copier = _start(command, directory, log)
    print(server.pid, flush=True)
    os.close(1)  # a reader of the number sees the end of the output
    died_at: list[float] = []
    while True:
        end = watch.until_end(server)
        if not (end.fault or end.is_orphan):
            _drain(server, directory)
        _stop(server, does_ask=not end.fault)
        copier.join(_LOG_S)  # its input ends with the last process that the server started
        _clear_shared_memory(shm_prefix)
        clear_temporary(directory)
        if not end.fault or watch.owner is not None:
            break  # one that was never ready is its owner's to report
        deaths = _num_deaths(died_at)
        log.error(f"{end.fault}{STARTED_AGAIN} (death {deaths} of the last 10 minutes)")
        if not watch.pause(_PAUSES_S[min(deaths, len(_PAUSES_S)) - 1]):
            break
        server, copier = _start(command, directory, log)
    if end.is_orphan:
        shutil.rmtree(directory, ignore_errors=True)
    return server.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
