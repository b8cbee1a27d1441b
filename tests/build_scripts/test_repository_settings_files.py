"""Catalogue and settings of a repository that make_triton_repo.py writes."""

from __future__ import annotations

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import repositories
from repositories import (
    ADAPTERS,
    engine_entry,
    write_engines,
    write_shipped_engines,
)

from compllm.build_scripts.make_triton_repo import Inputs, make_repository
from compllm.build_scripts.repository.settings_files import render_toml
from compllm.build_scripts.trtllm.record import TrtManifest
from compllm.build_scripts.trtllm.settings import Topology
from compllm.catalogue import load_catalogue
from compllm.config import load_config
from compllm.errors import ArtefactError, ConfigError
from compllm.formats.checkpoint import validate_checkpoint
from compllm.routing.embed import SentenceEncoder
from compllm.routing.route import Router


def test_catalogue_of_a_shared_base_keeps_adapters(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    catalogue = load_catalogue(make_repository(inputs, tmp_path / "out") / "experts.toml")
    chemistry = catalogue.expert("chemistry")
    assert (chemistry.model, chemistry.adapter_id) == ("tensorrt_llm", 11)
    assert catalogue.base.system == 'You answer "short" questions.'


def test_catalogue_of_engines_per_expert_names_their_models(
    inputs: Inputs, crowded: TrtManifest, tmp_path: Path
) -> None:
    catalogue = load_catalogue(make_repository(inputs, tmp_path / "out") / "experts.toml")
    chemistry = catalogue.expert("chemistry")
    assert (chemistry.model, chemistry.adapter_id) == ("tensorrt_llm_chemistry", None)
    assert catalogue.base.model == "tensorrt_llm"


def test_expert_without_its_adapter_is_refused(
    inputs: Inputs, engines: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    entry = engine_entry(validate_checkpoint(tiny_checkpoint), max_lora_rank=16)
    write_engines(engines, tiny_checkpoint, [entry], ADAPTERS[:1])
    with pytest.raises(ArtefactError, match=r"expert biology .* needs adapter biology"):
        make_repository(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("topology", ["shared", "per-expert"])
async def test_the_shipped_catalogue_routes_from_the_repository_alone(
    topology: Topology, engines: Path, base_dir: Path, encoder: SentenceEncoder, tmp_path: Path
) -> None:
    """The router's head was left behind: a GPU server's comp_llm could not start."""
    write_shipped_engines(engines, base_dir, topology)
    made = make_repository(Inputs(engines), tmp_path / "made")
    moved = made.rename(tmp_path / "moved")
    catalogue = load_catalogue(moved / "experts.toml")
    router = await Router.build(catalogue, encoder)
    assert router.head is not None
    shipped = load_catalogue()
    assert catalogue.files
    for copy, file in zip(catalogue.files, shipped.files, strict=True):
        assert copy.path.is_relative_to(moved)
        assert copy.path.read_bytes() == file.path.read_bytes()
    assert _named_files(shipped.path) == _named_files(catalogue.path)


def _named_files(path: Path) -> set[str]:
    """Texts of a catalogue that are files beside it, whatever their key."""
    texts = re.findall(r'"([^"\n]+)"', path.read_text(encoding="utf-8"))
    return {text for text in texts if (path.parent / text).is_file()}


@pytest.mark.parametrize(
    ("head", "place"),
    [
        ("routers/mine.npz", "routers/mine.npz"),
        ("../elsewhere/mine.npz", "router/mine.npz"),
        ("{}/elsewhere/mine.npz", "router/mine.npz"),
    ],
)
def test_a_file_that_the_catalogue_names_is_copied_wherever_it_lies(
    head: str, place: str, inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    head = head.format(tmp_path)
    folder = tmp_path / "catalogue"
    folder.mkdir()
    source = folder / head
    source.parent.mkdir()
    source.write_bytes(b"head")
    text = repositories.CATALOGUE.replace("[router]", f'[router]\nhead = "{head}"')
    (folder / "experts.toml").write_text(text)
    out = make_repository(replace(inputs, catalogue=folder / "experts.toml"), tmp_path / "out")
    assert load_catalogue(out / "experts.toml").router.head == out / place
    assert (out / place).read_bytes() == b"head"


def test_a_linked_file_stays_beside_the_catalogue(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    """As a ConfigMap is mounted: each file is a link."""
    (tmp_path / "data").write_bytes(b"head")
    (tmp_path / "mine.npz").symlink_to(tmp_path / "data")
    assert inputs.catalogue is not None
    text = repositories.CATALOGUE.replace("[router]", '[router]\nhead = "mine.npz"')
    inputs.catalogue.write_text(text)
    out = make_repository(inputs, tmp_path / "out")
    assert (out / "mine.npz").read_bytes() == b"head"
    assert not (out / "mine.npz").is_symlink()


def test_a_missing_file_that_the_catalogue_names_is_refused(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    assert inputs.catalogue is not None
    text = repositories.CATALOGUE.replace("[router]", '[router]\nhead = "gone.npz"')
    inputs.catalogue.write_text(text)
    with pytest.raises(ConfigError, match=r"router\.head = '.*gone\.npz': there is no such file"):
        make_repository(inputs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_the_settings_name_are_copied_too(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    given, gate = tmp_path / "mine.toml", tmp_path / "own.npz"
    given.write_text(f'[gate]\nmode = "on"\nfile = "{gate}"\n')
    with pytest.raises(ConfigError, match=r"gate\.file = '.*own\.npz': there is no such file"):
        make_repository(replace(inputs, config=given), tmp_path / "out")
    gate.write_bytes(b"gate")
    out = make_repository(replace(inputs, config=given), tmp_path / "out")
    config = load_config(out / "compllm.toml", environ={})
    assert config.gate.file == str(out / "gate.npz")
    assert (out / "gate.npz").read_bytes() == b"gate"


def test_the_catalogue_that_the_settings_name_is_the_repositorys(
    inputs: Inputs, shared: TrtManifest, tmp_path: Path
) -> None:
    given = tmp_path / "mine.toml"
    given.write_text(f'catalogue = "{inputs.catalogue}"\n')
    out = make_repository(Inputs(inputs.engines, config=given), tmp_path / "out")
    assert [expert.name for expert in load_catalogue(out / "experts.toml").experts] == [
        "chemistry",
        "biology",
    ]


def test_settings_of_the_user_are_kept(
    inputs: Inputs, shared: TrtManifest, engines: Path, tmp_path: Path
) -> None:
    given = tmp_path / "mine.toml"
    given.write_text('[limits]\nmax_nodes = 7\n[server]\nurl = "elsewhere:1"\n')
    out = make_repository(replace(inputs, config=given), tmp_path / "out")
    config = load_config(out / "compllm.toml", environ={})
    assert config.limits.max_nodes == 7
    assert config.server.url == ""
    assert config.server.tokenizer == str(engines / "tokenizer")
    assert config.server.adapters_dir == str(engines / "adapters")
    assert config.catalogue == str(out / "experts.toml")


def test_wrong_settings_are_refused(inputs: Inputs, shared: TrtManifest, tmp_path: Path) -> None:
    given = tmp_path / "mine.toml"
    given.write_text("[limits]\nmax_nodez = 7\n")
    with pytest.raises(ConfigError, match="max_nodez"):
        make_repository(replace(inputs, config=given), tmp_path / "out")


@pytest.mark.parametrize(
    "table",
    [
        {"a": 1, "b": [1.5, -2], "c": {"d": "e"}, "list": [{"x": True}, {"y": {"z": []}}]},
        {"a key": 'quotes " and \\ and \n and \x7f and é', "café": {"k": "v"}},
        tomllib.loads(repositories.CATALOGUE),
    ],
)
def test_rendered_toml_reads_back_the_same(table: dict[str, Any]) -> None:
    assert tomllib.loads(render_toml(table)) == table
