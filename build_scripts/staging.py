"""Whole directories or nothing: what every script here uses to write its result.

A result is made in a directory beside its place and renamed into it at the end, so an interruption,
a full disk or a crash never leaves half of one. A lock keeps two runs from making the same thing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from compllm import extras
from compllm.errors import CompllmError, ConfigError
from compllm.storage import explain_os_error, is_full, remedy_at, require_writable

_PARTIAL = ".partial"  # suffix of a directory being made; only the holder of the lock touches it
_OLD = ".old"  # suffix of the previous result during the exchange


def say(message: str) -> None:
    """One line of progress. On stderr, so that stdout stays free for results."""
    print(message, file=sys.stderr, flush=True)


def os_error_message(doing: str, path: Path, error: OSError) -> str:
    """One sentence about a failed file operation, with the remedy where the cause is known."""
    where = error.filename or path
    if is_full(error) and error.filename is None:
        error = OSError(error.errno, error.strerror, str(path))
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{doing}: cannot write {where}: {error.strerror}: {remedy_at(Path(where))}"
    reason = explain_os_error(error)
    return f"{doing}: {reason}" if reason else f"{doing}: {error.strerror or error}: {where}"


@contextmanager
def saving(doing: str, path: Path) -> Iterator[None]:
    """Around code that writes safetensors: its writer hides OSError behind a type of its own."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        code = errno.ENOSPC if "No space left" in str(error) else errno.EIO
        raise ConfigError(
            os_error_message(doing, path, OSError(code, str(error), str(path)))
        ) from error


def require_free_space(path: Path, num_bytes: int, doing: str) -> None:
    """Raises ConfigError when less is free for `path` (which need not exist yet)."""
    place = path
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < num_bytes:
        raise ConfigError(
            f"{doing}: needs {num_bytes / 1e6:.0f} MB in {path}, {free / 1e6:.0f} MB are free: "
            "free some, or set COMPLLM_HOME to another disk"
        )


@contextmanager
def exclusive(target: Path) -> Iterator[None]:
    """Only one process at a time makes `target`; others wait here until it has ended.

    Raises ConfigError where nothing can be written there."""
    require_writable(target.parent)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that writes {target}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def staged_directory(target: Path) -> Iterator[Path]:
    """Yield an empty directory beside `target` that replaces it when the block ends well.

    When the block raises, it is removed and `target` stays as it was. Needs `exclusive(target)`.
    """
    partial = target.with_name(target.name + _PARTIAL)
    recover(target)
    partial.mkdir(parents=True)
    try:
        yield partial
        _replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def recover(target: Path) -> None:
    """Clear what a killed run left: its half result goes, a result moved aside comes back."""
    shutil.rmtree(target.with_name(target.name + _PARTIAL), ignore_errors=True)
    old = target.with_name(target.name + _OLD)
    if not old.exists():
        return
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.rename(target)


def _replace(partial: Path, target: Path) -> None:
    """Directories cannot be exchanged in one portable call: move the old one aside first."""
    old = target.with_name(target.name + _OLD)
    if target.exists():
        target.rename(old)
    try:
        partial.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file as a whole."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


class Terminated(KeyboardInterrupt):
    """SIGTERM came: the same clean-up as for Ctrl-C, another exit status."""


def run_script(action: Callable[[], None]) -> int:
    """Run a script's work; turn our errors and an interruption into one line and an exit status."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        raise Terminated

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        action()
    except CompllmError as error:
        say(f"error: {error}")
        return 1
    except ImportError as error:
        if (error.name or "").startswith("compllm"):
            raise
        say(f"error: {error}: {extras.hint(error)}")
        return 1
    except OSError as error:
        say(f"error: {os_error_message('stopped', Path(error.filename or '.'), error)}")
        return 1
    except KeyboardInterrupt as end:
        is_terminated = isinstance(end, Terminated)
        how = "terminated" if is_terminated else "interrupted"
        say(f"{how}: nothing half-written was left, run it again to continue")
        return 143 if is_terminated else 130
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 0
