"""What tests share beside fixtures: two conftest.py files cannot be told apart by an import."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

MakeAdapter = Callable[..., Path]  # the fixture make_adapter


def rewrite_json(path: Path, changes: Mapping[str, object]) -> None:
    """Change keys of a JSON object on disk."""
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **changes}), encoding="utf-8")
