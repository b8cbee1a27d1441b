from pathlib import Path

import pytest
from helpers import MakeAdapter

from compllm.build_scripts.build_openvino import AdapterSource, update_adapters
from compllm.catalogue import Catalogue, default_catalogue_path, load_catalogue
from compllm.cli.prepare import adapter_sources, check_ids, ensure_engine
from compllm.errors import ArtefactError, ConfigError
from compllm.formats.manifest import MANIFEST_FILE, Manifest


@pytest.fixture
def shipped(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> tuple[AdapterSource, ...]:
    return (AdapterSource(make_adapter(tiny_checkpoint), "chemistry"),)


@pytest.fixture
def own(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> AdapterSource:
    return AdapterSource(make_adapter(tiny_checkpoint, seed=1), "mine")


def names(manifest: Manifest) -> set[str]:
    return {entry.name for entry in manifest.adapters}


def test_engine_that_is_there_is_not_built_again(
    tiny_checkpoint: Path, tmp_path: Path, shipped: tuple[AdapterSource, ...]
) -> None:
    out = tmp_path / "engine"
    ensure_engine(tiny_checkpoint, out, shipped)
    before = (out / MANIFEST_FILE).stat().st_ino
    ensure_engine(tiny_checkpoint, out, shipped)
    assert (out / MANIFEST_FILE).stat().st_ino == before


def test_newly_shipped_adapter_joins_those_of_the_user(
    tiny_checkpoint: Path,
    tmp_path: Path,
    shipped: tuple[AdapterSource, ...],
    own: AdapterSource,
) -> None:
    out = tmp_path / "engine"
    ensure_engine(tiny_checkpoint, out, ())
    update_adapters(out, [own])
    assert names(ensure_engine(tiny_checkpoint, out, shipped)) == {"mine", "chemistry"}


def test_users_adapters_are_not_lost_to_another_base(
    tiny_checkpoint: Path, base_dir: Path, tmp_path: Path, own: AdapterSource
) -> None:
    out = tmp_path / "engine"
    ensure_engine(tiny_checkpoint, out, ())
    update_adapters(out, [own])
    with pytest.raises(ArtefactError, match="not of the base in use"):
        ensure_engine(base_dir, out, ())
    assert names(Manifest.read(out)) == {"mine"}


def catalogue(tmp_path: Path, adapter: str) -> Catalogue:
    path = tmp_path / "experts.toml"
    path.write_text(
        f'[base]\nsystem = "Answer."\n[router]\nthreshold = 0.3\nencoder = "x"\n{adapter}'
    )
    return load_catalogue(path)


def test_engine_gets_the_adapters_of_the_catalogue(
    tiny_checkpoint: Path, tmp_path: Path, own: AdapterSource
) -> None:
    named = catalogue(tmp_path, f'[adapters.mine]\npath = "{own.directory}"\nid = 5\n')
    manifest = ensure_engine(
        tiny_checkpoint, tmp_path / "engine", adapter_sources(named, tiny_checkpoint)
    )
    task_id = next(entry.task_id for entry in manifest.adapters if entry.name == "mine")
    with pytest.raises(ConfigError, match=rf"adapters.mine: its id is 5, .* is {task_id}"):
        check_ids(named, manifest)
    right = f'[adapters.mine]\npath = "{own.directory}"\nid = {task_id}\n[adapters.gone]\nid = 6\n'
    check_ids(catalogue(tmp_path, right), manifest)


def test_a_chat_template_that_is_not_the_bases_is_refused_before_building(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from compllm.cli import prepare as module

    built: list[Path] = []
    text = default_catalogue_path().read_text(encoding="utf-8")
    path = tmp_path / "experts.toml"
    path.write_text(text.replace('template = "chatml"', 'template = "llama3"'))
    for folder in ("adapters", "router", "confidence"):
        if (default_catalogue_path().parent / folder).exists():
            (tmp_path / folder).symlink_to(default_catalogue_path().parent / folder)
    monkeypatch.setattr(module, "ensure_base", lambda: tiny_checkpoint)
    monkeypatch.setattr(module, "ensure_ir", lambda encoder: None)
    monkeypatch.setattr(module, "ensure_engine", lambda base, *_: built.append(base))
    with pytest.raises(ConfigError, match=r'set template = "chatml"'):
        module.prepare(load_catalogue(path))
    assert built == []
