"""What tests share apart from fixtures: two conftest.py files cannot be told apart by an import."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from compllm import paths
from compllm.build_scripts.repository.settings_files import render_toml
from compllm.catalogue import default_catalogue_path
from compllm.config import read_toml

MakeAdapter = Callable[..., Path]  # the fixture make_adapter


def rewrite_json(path: Path, changes: Mapping[str, object]) -> None:
    """Change keys of a JSON object on disk."""
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**value, **changes}), encoding="utf-8")


@contextmanager
def own_home(home: Path, encoder_dir: Path) -> Iterator[pytest.MonkeyPatch]:
    """While the block runs, `home` is the user's, with the fetched encoder in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPLLM_HOME", str(home))
        paths.encoder_dir().parent.mkdir(parents=True)
        paths.encoder_dir().symlink_to(encoder_dir)
        yield patch


def bare_catalogue(directory: Path) -> Path:
    """The shipped catalogue without its adapters: they fit the shipped base alone, and tests ask a
    small one."""
    shipped = default_catalogue_path()
    table = read_toml(shipped)
    # The calibration belongs to the adapters, too.
    for name in ("generator", "aggregator", "confidence"):
        table.pop(name, None)
    table["adapters"] = {}
    for expert in table["experts"]:
        expert.pop("adapter", None)
        expert.setdefault("system", "Give only the answer, in a few words.")
    if head := table["router"].get("head"):
        table["router"]["head"] = str(shipped.parent / head)
    path = directory / "experts.toml"
    path.write_text(render_toml(table), encoding="utf-8")
    return path
