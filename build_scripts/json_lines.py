"""Files of JSON lines, as the scripts read them: an object a line, empty lines do not count."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compllm.errors import ConfigError


def read_text(path: Path) -> str:
    """Of a UTF-8 file, with or without a byte-order mark. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start})") from error


def read_json_lines(path: Path, keys: Sequence[str] = ()) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line.

    Raises ConfigError that names the line: of one that is no object, and of one that lacks a key.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}: line {number} is not a JSON object: {error}") from error
        if not isinstance(record, dict):
            raise ConfigError(f"{path}: line {number} is not a JSON object: {line[:60]!r}")
        for key in keys:
            if key not in record:
                raise ConfigError(f"{path}: line {number} has no {key!r}")
        yield number, record
