"""Outcomes on disk, one line a record, so that a run that was killed goes on where it stopped.

A file belongs to one contestant under one configuration (its hash is in the name); a line belongs
to one record with one content (its hash is in the line). What changed is made again, what did not
is read.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


def content_hash(*values: object) -> str:
    """Short hash of JSON values and dataclasses."""
    text = json.dumps(values, sort_keys=True, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def source_hash(paths: Iterable[Path]) -> str:
    """Hash of files that are part of a configuration, since they decide answers. Of Python sources
    only the code counts: hours of results must not be lost to a comment."""
    digest = hashlib.sha256()
    for path in sorted(paths):
        content = path.read_bytes()
        if path.suffix == ".py":
            content = ast.dump(_without_docstrings(ast.parse(content))).encode()
        digest.update(path.name.encode() + b"\0" + content)
    return digest.hexdigest()[:16]


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return tree


class ResultStore:
    """The outcomes of one contestant under one configuration."""

    def __init__(self, folder: Path, name: str, configuration: str) -> None:
        self.path = folder / f"{name}-{configuration}.jsonl"
        self._outcomes = self._read()
        self._handle: Any = None

    def get(self, record_id: str, record_hash: str) -> dict[str, Any] | None:
        """The outcome, unless the record has changed since."""
        line = self._outcomes.get(record_id)
        return line["outcome"] if line and line["record"] == record_hash else None

    def put(self, record_id: str, record_hash: str, outcome: dict[str, Any]) -> None:
        line = {"id": record_id, "record": record_hash, "outcome": outcome}
        self._outcomes[record_id] = line
        if self._handle is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self.path.open("a", encoding="utf-8")
        self._handle.write(json.dumps(line, ensure_ascii=True) + "\n")
        self._handle.flush()

    def close(self) -> None:
        if self._handle is not None:
            self._handle.close()
            self._handle = None

    def _read(self) -> dict[str, dict[str, Any]]:
        """Lines by record; the last one of a record holds. A line that broke off is cut away."""
        if not self.path.is_file():
            return {}
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            with self.path.open("r+b") as handle:
                handle.truncate(end)
        lines = [json.loads(line) for line in data[:end].splitlines()]
        return {line["id"]: line for line in lines}


def _as_json(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, Path):
        return value.name
    raise TypeError(f"{type(value).__name__} cannot be hashed as JSON")
