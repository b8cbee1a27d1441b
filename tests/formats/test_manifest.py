"""Manifests: written and read alike, and an engine that is not what it says is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compllm.errors import ArtefactError
from compllm.formats.manifest import (
    AdapterEntry,
    FileEntry,
    Manifest,
    installed_versions,
    sha256_file,
)

ENTRY = AdapterEntry("chem", 1, 77, 8, 14, "ab", "adapters/chem.npz")


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    (tmp_path / "adapters").mkdir()
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    (tmp_path / "adapters" / "chem.npz").write_bytes(b"factors")
    names = ("weights.safetensors", "adapters/chem.npz")
    Manifest(
        base_name="tiny",
        base_sha256="c" * 64,
        base_key="d" * 64,
        dtype="int8",
        versions=installed_versions(),
        limits={"max_seq_len": 512},
        base_files=("weights.safetensors",),
        tokenizer_files=(),
        adapters=(ENTRY,),
        files={name: FileEntry(7, sha256_file(tmp_path / name)) for name in names},
    ).write(tmp_path)
    return tmp_path


def test_reads_what_was_written(engine: Path) -> None:
    manifest = Manifest.read(engine)
    assert manifest.adapters == (ENTRY,)
    assert manifest.base_files == ("weights.safetensors",)
    manifest.write(engine)
    assert Manifest.read(engine) == manifest
    manifest.verify(engine, base_sha256="c" * 64)


def test_no_manifest_is_no_engine(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="is not an engine directory"):
        Manifest.read(tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["format"], "compllm-engine/0", "has format 'compllm-engine/0'"),
        (["dtype"], None, "is damaged"),  # None: the key goes
        (["unknown"], 1, "is damaged"),
        (["files"], [], "is damaged"),
        (["files", "../../x"], {"size": 1, "sha256": "a"}, "outside the engine directory"),
        (["adapters", 0, "slot"], 2, "chem in slot 2"),
        (["adapters", 0, "task_id"], -1, "is damaged"),
        (["adapters", 0, "task_id"], "7", "is damaged"),
        (["adapters", 0, "file"], "adapters/other.npz", "is damaged"),
    ],
)
def test_damaged_manifest_is_refused(engine: Path, path: list[Any], value: Any, said: str) -> None:
    manifest = json.loads((engine / "manifest.json").read_text())
    place = manifest
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    if value is None:
        del place[path[-1]]
    (engine / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtefactError, match=said):
        Manifest.read(engine)


@given(
    content=st.binary(max_size=80) | st.from_regex(r"\A[\[{\"0-9n][ -~]{0,40}\Z").map(str.encode)
)
def test_any_junk_is_refused(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("junk")
    (directory / "manifest.json").write_bytes(content)
    with pytest.raises(ArtefactError):
        Manifest.read(directory)


@pytest.mark.parametrize("name", ["weights.safetensors", "adapters/chem.npz"])
def test_changed_and_missing_files_are_named(engine: Path, name: str) -> None:
    manifest = Manifest.read(engine)
    (engine / name).write_bytes(b"changed")  # of the same size
    manifest.verify(engine, is_deep=False)
    with pytest.raises(ArtefactError, match=f"{name} is damaged"):
        manifest.verify(engine)
    (engine / name).unlink()
    with pytest.raises(ArtefactError, match=f"{name} cannot be read"):
        manifest.verify(engine, is_deep=False)


def test_engine_of_another_base_is_refused(engine: Path) -> None:
    with pytest.raises(
        ArtefactError, match=r"is of base tiny \(cccccccccccc\), not of the base in use"
    ):
        Manifest.read(engine).verify(engine, base_sha256="e" * 64)


def test_engine_of_another_openvino_is_refused(engine: Path) -> None:
    manifest = replace(Manifest.read(engine), versions={"openvino": "2020.1"})
    with pytest.raises(ArtefactError, match=r"was built with openvino 2020\.1, installed is"):
        manifest.verify(engine)
