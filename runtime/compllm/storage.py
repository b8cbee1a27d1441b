"""Whether a directory can be written, found out before the work and reported with its remedy."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

from compllm import paths
from compllm.errors import ConfigError

# A path that cannot be made or written, whatever was tried there.
_OF_THE_PLACE = (
    errno.EACCES,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def problem_at(directory: Path) -> str | None:
    """Why no file can be made in `directory`, which need not exist yet; None where one can.
    Nothing is left behind."""
    place = directory
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        return f"{place} is not a directory"
    try:
        with tempfile.TemporaryDirectory(prefix=".compllm-", dir=place):
            return None
    except OSError as error:
        return f"{place} cannot be written ({error.strerror})"


def require_writable(directory: Path) -> None:
    """Raises ConfigError unless files can be made in `directory`, which need not exist yet."""
    if (problem := problem_at(directory)) is not None:
        raise ConfigError(f"cannot write to {directory}: {problem}: {remedy_at(directory)}")


def require_space(directory: Path) -> None:
    """Raises OSError (ENOSPC) where not even a small file can be written to `directory`."""
    with tempfile.NamedTemporaryFile(prefix=".compllm-", dir=directory) as file:
        try:
            file.write(b"0" * 65536)
            file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(directory)) from error


def remedy_at(path: Path) -> str:
    """What to do about a path that cannot be written."""
    home = paths.home_dir()
    if path == home or path.is_relative_to(home):
        return "set COMPLLM_HOME to a directory that you may write"
    return "name a directory that you may write"


def explain_os_error(error: OSError) -> str | None:
    """One sentence about a path that cannot be used, with its remedy; None for another fault."""
    error = _one_of(error)
    if is_full(error):
        where = paths.home_dir() if error.filename is None else error.filename
        reason = "" if error.errno == errno.ENOSPC else f" ({error.strerror})"
        return f"no space left for {where}{reason}: free some, or set COMPLLM_HOME to another disk"
    if error.errno not in _OF_THE_PLACE or not isinstance(error.filename, str | os.PathLike):
        return None
    path = Path(os.fspath(error.filename))
    return f"cannot use {path}: {error.strerror}: {remedy_at(path)}"


def is_full(error: OSError) -> bool:
    """Whether nothing more can be written: the disk, a quota or a limit of the process."""
    return _one_of(error).errno in _FULL


def _one_of(error: OSError) -> OSError:
    """The first of those that copying a tree has collected."""
    if not isinstance(error, shutil.Error) or not error.args or not isinstance(error.args[0], list):
        return error
    for number in (*_FULL, *_OF_THE_PLACE):
        for each in error.args[0]:
            if len(each) == 3 and os.strerror(number) in str(each[2]):
                return OSError(number, os.strerror(number), str(each[1]))
    return error
