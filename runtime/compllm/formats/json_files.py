"""JSON objects from files, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compllm.errors import ArtefactError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ArtefactError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ArtefactError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def words(text: str) -> frozenset[str]:
    """The words of a text, such as the keys that a file may have."""
    return frozenset(text.split())
