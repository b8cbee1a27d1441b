"""A fitted head on disk: one .npz with its arrays and a record in JSON, `about`, beside them.

What router files and gate files have in common: written whole or not at all, and read without
executing anything in them. Their own modules check what the arrays and the record say.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from compllm.errors import ConfigError


def write_archive(path: Path, about: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write it whole, or leave what was there. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        np.savez_compressed(partial, about=np.array(json.dumps(about)), **arrays)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_archive(
    path: Path, version: int, max_bytes: int
) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """(about, arrays). Raises as `told_as` expects: read inside of it."""
    if path.stat().st_size > max_bytes:
        raise ValueError(f"it has more than {max_bytes} bytes")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    about = json.loads(str(arrays.pop("about")))
    if about["format"] != version:
        raise ValueError(f"its format is {about['format']!r}, this version reads {version}")
    return about, arrays


@contextmanager
def told_as(what: str, path: Path, trained: str) -> Iterator[None]:
    """Whatever is wrong with a file, raised as one ConfigError that names it and the remedy."""
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"no {what} in {path}") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile) as error:
        reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise ConfigError(
            f"cannot read the {what} in {path}: {reason}: make it anew with "
            f"`compllm train {trained}`"
        ) from error
