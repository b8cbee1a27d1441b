"""Engine builds: only what changed is made, and an engine is replaced as a whole or not at all."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import MakeAdapter, rewrite_json

from compllm.build_scripts import build_openvino
from compllm.build_scripts.build_openvino import AdapterSource, build_engine, update_adapters
from compllm.build_scripts.manifest import weights_sha256
from compllm.embedded import model
from compllm.errors import ArtefactError
from compllm.formats.checkpoint import validate_checkpoint
from compllm.formats.manifest import Manifest


@pytest.fixture(scope="module")
def chem(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> AdapterSource:
    return AdapterSource(make_adapter(tiny_checkpoint, "chem", rank=4, seed=1), "chem")


@pytest.fixture(scope="module")
def bio(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> AdapterSource:
    directory = make_adapter(tiny_checkpoint, "bio", rank=2, modules=["up_proj"], seed=2)
    return AdapterSource(directory, "bio")


@pytest.fixture(scope="module")
def built(
    tiny_checkpoint: Path, chem: AdapterSource, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("engines") / "built"
    build_engine(tiny_checkpoint, [chem], out)
    return out


@pytest.fixture
def engine(built: Path, tmp_path: Path) -> Path:
    """A built engine with the adapter chem that a test may change."""
    return Path(shutil.copytree(built, tmp_path / "engine"))


@pytest.fixture
def no_base_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "build_base", lambda *_: pytest.fail("the base was built again"))


def names(manifest: Manifest) -> list[tuple[int, str]]:
    return [(entry.slot, entry.name) for entry in manifest.adapters]


def assert_only_the_engine(engine: Path) -> None:
    beside = {path.name for path in engine.parent.iterdir()}
    assert beside <= {"engine", ".engine.lock"}


def test_engine_holds_weights_tokenizer_adapters_and_a_true_manifest(
    engine: Path, tiny_checkpoint: Path, chem: AdapterSource
) -> None:
    manifest = Manifest.read(engine)
    manifest.verify(engine, base_sha256=weights_sha256(tiny_checkpoint))
    there = {path.relative_to(engine).as_posix() for path in engine.rglob("*") if path.is_file()}
    assert there == {*manifest.files, "manifest.json"}
    assert {"weights.safetensors", "config.json", "adapters/chem.npz"} <= there
    assert manifest.tokenizer_files == ("tokenizer.json", "tokenizer_config.json")
    assert manifest.limits == {"max_seq_len": 512, "vocab_size": 49152, "max_lora_rank": 4}
    assert (manifest.base_name, manifest.dtype) == ("tiny-llama", "int8")
    (adapter,) = manifest.load_adapters(engine, validate_checkpoint(tiny_checkpoint))
    assert (adapter.name, adapter.task_id) == ("chem", manifest.adapters[0].task_id)


@pytest.mark.usefixtures("no_base_build")
def test_unchanged_input_builds_nothing(
    engine: Path, tiny_checkpoint: Path, chem: AdapterSource
) -> None:
    before = {path: path.stat().st_mtime_ns for path in engine.rglob("*")}
    build_engine(tiny_checkpoint, [chem], engine)
    assert {path: path.stat().st_mtime_ns for path in engine.rglob("*")} == before


@pytest.mark.usefixtures("no_base_build")
def test_adding_an_adapter_keeps_the_base(
    engine: Path, tiny_checkpoint: Path, chem: AdapterSource, bio: AdapterSource
) -> None:
    manifest = build_engine(tiny_checkpoint, [chem, bio], engine)
    assert names(manifest) == [(1, "chem"), (2, "bio")]
    Manifest.read(engine).verify(engine)
    assert_only_the_engine(engine)


@pytest.mark.parametrize("change", ["dtype", "weights", "tokenizer", "openvino"])
def test_changed_base_is_built_again(
    engine: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny-llama"))
    if change == "weights":
        weights = bytearray((checkpoint / "model.safetensors").read_bytes())
        weights[-1] ^= 1
        (checkpoint / "model.safetensors").write_bytes(weights)
    if change == "tokenizer":
        rewrite_json(checkpoint / "tokenizer_config.json", {"chat_template": "other"})
    if change == "openvino":
        versions = {"compllm": "0", "openvino": "2000.1", "numpy": "0"}
        monkeypatch.setattr(build_openvino, "installed_versions", lambda: versions)
    before = Manifest.read(engine)
    after = build_engine(checkpoint, [], engine, "fp16" if change == "dtype" else "int8")
    assert after.base_key != before.base_key


@pytest.mark.usefixtures("no_base_build")
def test_same_weights_saved_anew_are_the_same_base(
    engine: Path, tiny_checkpoint: Path, chem: AdapterSource, tmp_path: Path
) -> None:
    from safetensors.numpy import load_file, save_file

    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "tiny-llama"))
    weights = load_file(checkpoint / "model.safetensors")
    save_file(weights, checkpoint / "model.safetensors", metadata={"saved": "by another version"})
    rewrite_json(checkpoint / "config.json", {"transformers_version": "9"})
    build_engine(checkpoint, [chem], engine)


def test_damaged_engine_is_built_anew(
    engine: Path, tiny_checkpoint: Path, chem: AdapterSource
) -> None:
    path = engine / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    build_engine(tiny_checkpoint, [chem], engine).verify(engine)


def test_foreign_directory_is_never_replaced(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ArtefactError, match="holds other files and is not replaced"):
        build_engine(tiny_checkpoint, [], tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "webapp/1"}')
    with pytest.raises(ArtefactError, match="holds other files and is not replaced"):
        build_engine(tiny_checkpoint, [], tmp_path)
    with pytest.raises(ArtefactError, match="is a file"):
        build_engine(tiny_checkpoint, [], tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("manifest", ["", "{", "[]"])
def test_an_empty_manifest_in_the_home_is_built_anew(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, manifest: str
) -> None:
    """`compllm up` refused the folder whose repair `compllm doctor` expected of it."""
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    out = tmp_path / "engines" / "embedded"
    out.mkdir(parents=True)
    (out / "manifest.json").write_text(manifest)
    build_engine(tiny_checkpoint, [], out).verify(out)


def test_empty_directory_is_taken(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "engine").mkdir()
    assert names(build_engine(tiny_checkpoint, [], tmp_path / "engine", "fp16")) == []


def test_refused_adapter_leaves_the_engine_as_it_was(
    engine: Path, tiny_checkpoint: Path, chem: AdapterSource, bio: AdapterSource, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bio.directory, tmp_path / "bad"))
    rewrite_json(copy / "adapter_config.json", {"use_dora": True})
    with pytest.raises(ArtefactError, match="adapter bio: DoRA"):
        build_engine(tiny_checkpoint, [chem, AdapterSource(copy, "bio")], engine)
    assert names(Manifest.read(engine)) == [(1, "chem")]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
@pytest.mark.parametrize("place", ["build_base", "save_adapter_npz"])
def test_failure_leaves_the_old_engine(
    engine: Path,
    tiny_checkpoint: Path,
    bio: AdapterSource,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    error: BaseException,
) -> None:
    def fail(*_: Any) -> None:
        raise error

    owner = model if place == "build_base" else build_openvino
    monkeypatch.setattr(owner, place, fail)
    with pytest.raises(type(error)):
        build_engine(tiny_checkpoint, [bio], engine, "fp16" if place == "build_base" else "int8")
    manifest = Manifest.read(engine)
    manifest.verify(engine)
    assert names(manifest) == [(1, "chem")]
    assert_only_the_engine(engine)


def test_unknown_dtype_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="dtype 'int4' is not known; known are int8, fp16"):
        build_engine(tiny_checkpoint, [], tmp_path / "engine", "int4")


def test_same_name_twice_is_refused(
    engine: Path, tiny_checkpoint: Path, chem: AdapterSource
) -> None:
    with pytest.raises(ArtefactError, match="adapter chem is given twice"):
        build_engine(tiny_checkpoint, [chem, chem], engine)


@pytest.mark.usefixtures("no_base_build")
def test_update_adds_replaces_and_removes(
    engine: Path, chem: AdapterSource, bio: AdapterSource
) -> None:
    before = Manifest.read(engine).adapters[0]
    assert names(update_adapters(engine, add=[bio])) == [(1, "chem"), (2, "bio")]
    replaced = update_adapters(engine, add=[AdapterSource(bio.directory, "chem")])
    assert names(replaced) == [(1, "chem"), (2, "bio")]
    assert replaced.adapters[0].task_id != before.task_id
    assert names(update_adapters(engine, remove=["chem"])) == [(1, "bio")]
    assert not (engine / "adapters" / "chem.npz").exists()
    Manifest.read(engine).verify(engine)


def test_update_of_what_is_not_there_is_refused(
    engine: Path, tmp_path: Path, bio: AdapterSource
) -> None:
    with pytest.raises(ArtefactError, match="has no adapter 'physics'; it has chem"):
        update_adapters(engine, remove=["physics"])
    with pytest.raises(ArtefactError, match="is not an engine directory"):
        update_adapters(tmp_path / "nowhere", add=[bio])


def test_sources_are_parsed_with_and_without_a_name(tmp_path: Path) -> None:
    assert AdapterSource.parse("chem=some/dir") == AdapterSource(Path("some/dir"), "chem")
    assert AdapterSource.parse(f"{tmp_path}/a").name == "a"
    with pytest.raises(ArtefactError, match="adapter name"):
        AdapterSource.parse("base=dir")


def test_shipped_adapters_are_the_default(
    chem: AdapterSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_openvino, "resource_dir", lambda name: tmp_path / name)
    assert build_openvino.default_adapters() == ()
    shutil.copytree(chem.directory, tmp_path / "engines" / "adapters" / "chem")
    (tmp_path / "engines" / "adapters" / "notes").mkdir()
    assert [source.name for source in build_openvino.default_adapters()] == ["chem"]


@pytest.fixture
def shipped(chem: AdapterSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one adapter that this package ships."""
    monkeypatch.setattr(build_openvino, "resource_dir", lambda name: tmp_path / name)
    return Path(shutil.copytree(chem.directory, tmp_path / "engines" / "adapters" / "chem"))


def test_shipped_adapters_of_another_base_are_left_out(
    shipped: Path,
    tiny_checkpoint: Path,
    base_dir: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rewrite_json(shipped / "adapter_config.json", {"base_model_name_or_path": "maker/tiny-llama"})
    assert len(build_openvino.default_adapters(tiny_checkpoint)) == 1
    assert build_openvino.default_adapters(base_dir) == ()
    assert "are left out: chem" in capsys.readouterr().err


def test_shipped_adapters_of_other_weights_of_the_same_name_are_left_out(
    shipped: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for sha256, names in ((weights_sha256(tiny_checkpoint), ["chem"]), ("0" * 64, [])):
        (shipped / "manifest.json").write_text(json.dumps({"base": {"sha256": sha256}}))
        found = build_openvino.default_adapters(tiny_checkpoint)
        assert [each.name for each in found] == names
    assert "are left out: chem" in capsys.readouterr().err


def test_every_adapter_that_is_shipped_is_for_the_base_that_is_fetched(base_dir: Path) -> None:
    base = replace(validate_checkpoint(base_dir), sha256=weights_sha256(base_dir))
    sources = build_openvino.default_adapters()
    assert sources
    for source in sources:
        assert source.read(base).name == source.name
        with pytest.raises(ArtefactError, match=f"adapter {source.name}: made for base SmolLM2"):
            source.read(replace(base, sha256="0" * 64))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = build_openvino.main(arguments)
    out, err = capsys.readouterr()
    return status, out, err


def test_command_line_builds_updates_and_reports(
    tiny_checkpoint: Path,
    chem: AdapterSource,
    bio: AdapterSource,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    to = ("--out", str(tmp_path / "engine"))
    status, out, _ = run(
        capsys, *to, "--checkpoint", str(tiny_checkpoint), "--adapter", f"c={chem.directory}"
    )
    assert (status, "slot 1   c (rank 4, lora_task_id" in out) == (0, True)
    status, out, _ = run(capsys, *to, "--add-adapter", str(bio.directory), "--remove-adapter", "c")
    assert (status, "slot 1   bio (rank 2" in out) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--checkpoint", "/nowhere", "--no-adapters"], "checkpoint /nowhere is not a directory"),
        (["--remove-adapter", "x"], "is not an engine directory"),
    ],
)
def test_command_line_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], said: str
) -> None:
    status, _, err = run(capsys, "--out", str(tmp_path / "engine"), *arguments)
    assert status == 1
    assert said in err
    assert err.count("\n") == 1


def test_unwritable_place_is_one_line(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    place = ("--out", str(tmp_path / "file" / "engine"))
    status, _, err = run(capsys, *place, "--checkpoint", str(tiny_checkpoint), "--no-adapters")
    assert (status, err.count("\n")) == (1, 1)
    assert "is not a directory: name a directory that you may write" in err


def test_a_flag_takes_adapters_of_a_repack_of_the_base(
    engine: Path, bio: AdapterSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(bio.directory, tmp_path / "bio"))
    repack = {"base_model_name_or_path": "unsloth/tiny-llama-bnb-4bit"}
    rewrite_json(copy / "adapter_config.json", repack)
    arguments = ["--out", str(engine), "--add-adapter", str(copy)]
    assert build_openvino.main(arguments) != 0
    assert "--same-base" in capsys.readouterr().err
    assert build_openvino.main([*arguments, "--same-base"]) == 0
    assert names(Manifest.read(engine)) == [(1, "chem"), (2, "bio")]
