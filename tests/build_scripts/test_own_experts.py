"""An expert is added or removed as a whole: whatever step fails, everything is as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import MakeAdapter, rewrite_json

from compllm import paths
from compllm.build_scripts.build_openvino import build_engine
from compllm.build_scripts.fetch_base import select_checkpoint
from compllm.build_scripts.own import experts
from compllm.build_scripts.own.experts import Wish, apply, plan_add, plan_remove
from compllm.build_scripts.own.project import Project, make_project
from compllm.catalogue import Endpoint
from compllm.errors import ArtefactError, ConfigError, ServerError
from compllm.formats.manifest import Manifest
from compllm.testing import HashingEncoder

ENCODER: Any = HashingEncoder()
LAW = tuple(f"tort contract court {word}" for word in "abcdefgh")


@pytest.fixture
def project(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """An empty one, for the tiny base, whose engine is built."""
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path / "home"))
    select_checkpoint(tiny_checkpoint)
    build_engine(tiny_checkpoint, (), paths.engine_dir(), "fp16")
    return Project(make_project(tmp_path / "mine", ENCODER.id, "chatml", has_shipped=False))


@pytest.fixture
def wish(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> Wish:
    return Wish("law", make_adapter(tiny_checkpoint), "the law", LAW)


def files(folder: Path) -> dict[str, bytes]:
    found = (each for each in sorted(folder.rglob("*")) if each.is_file())
    return {str(each.relative_to(folder)): each.read_bytes() for each in found}


def engine_adapters() -> list[str]:
    return [entry.name for entry in Manifest.read(paths.engine_dir()).adapters]


def test_an_added_expert_is_in_the_project_and_in_the_engine(project: Project, wish: Wish) -> None:
    assert apply(plan_add(project, wish, ENCODER)) == "no server runs: `compllm up` serves it"
    catalogue = Project(project.path).catalogue
    (expert,) = catalogue.experts
    (entry,) = Manifest.read(paths.engine_dir()).adapters
    assert (expert.name, expert.adapter_id) == ("law", entry.task_id)
    assert catalogue.router.head is not None
    assert catalogue.router.head.is_file()
    there = files(project.folder / "adapters" / "law")
    assert set(there) == {"adapter_config.json", "adapter_model.safetensors"}


def test_an_expert_at_a_server_has_its_address_and_no_adapter(project: Project) -> None:
    endpoint = Endpoint("http://127.0.0.1:8000/v1", "big", "KEY")
    apply(
        plan_add(project, Wish("wine", None, "wine", LAW, "Be short.", endpoint=endpoint), ENCODER)
    )
    catalogue = Project(project.path).catalogue
    (expert,) = catalogue.experts
    assert catalogue.endpoints == (endpoint,)
    assert (expert.model, expert.adapter_id, expert.system) == (endpoint.key, None, "Be short.")
    assert engine_adapters() == []
    apply(plan_remove(Project(project.path), "wine", ENCODER))
    assert [each.name for each in project.folder.iterdir()] == ["compllm.toml"]


def test_removing_it_leaves_the_folder_and_the_engine_as_before(
    project: Project, wish: Wish
) -> None:
    before = files(project.folder)
    apply(plan_add(project, wish, ENCODER))
    second = replace(wish, name="cooking", examples=tuple(f"flour oven {w}" for w in "abcdefgh"))
    apply(plan_add(Project(project.path), second, ENCODER))
    for name in ("law", "cooking"):
        apply(plan_remove(Project(project.path), name, ENCODER))
    assert files(project.folder) == before
    assert [each.name for each in project.folder.iterdir()] == ["compllm.toml"]
    assert engine_adapters() == []


@pytest.mark.parametrize("failing", ["make_live", "_update_engine", "save"])
def test_a_step_that_fails_leaves_nothing_behind(
    project: Project, wish: Wish, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    before = files(project.folder)

    def fail(*_: object) -> None:
        raise ServerError("no")

    monkeypatch.setattr(Project if failing == "save" else experts, failing, fail)
    change = plan_add(project, wish, ENCODER)
    with pytest.raises(ServerError):
        apply(change)
    assert files(project.folder) == before
    assert [each.name for each in project.folder.iterdir()] == ["compllm.toml"]
    assert engine_adapters() == []


def test_the_record_of_training_gets_the_name_and_id_that_it_has_here(
    project: Project, wish: Wish
) -> None:
    record = {"format": "compllm-lora/1", "name": "other", "lora_task_id": 5}
    (wish.adapter / "manifest.json").write_text(json.dumps(record))
    change = plan_add(project, wish, ENCODER)
    apply(change)
    kept = json.loads((project.folder / "adapters/law/manifest.json").read_text())
    (expert,) = Project(project.path).catalogue.experts
    assert (kept["name"], kept["lora_task_id"]) == ("law", expert.adapter_id)


def _config(**changes: object) -> Callable[[Path], None]:
    return lambda adapter: rewrite_json(adapter / "adapter_config.json", changes)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_config(use_dora=True), "DoRA"),
        (_config(peft_type="IA3"), "only LORA is served"),
        (_config(alora_invocation_tokens=[1]), "aLoRA"),
        (_config(base_model_name_or_path="other/base"), "made for base base.*add --same-base"),
        (_config(r=3), "its rank is 4, the config says 3"),
    ],
)
def test_an_adapter_that_cannot_be_served_is_refused_and_nothing_changes(
    project: Project, wish: Wish, spoil: Callable[[Path], None], says: str
) -> None:
    before = files(project.folder)
    spoil(wish.adapter)
    with pytest.raises(ArtefactError, match=says):
        plan_add(project, wish, ENCODER)
    assert files(project.folder) == before


def test_an_adapter_of_a_repacked_base_may_be_said_to_fit(project: Project, wish: Wish) -> None:
    rewrite_json(wish.adapter / "adapter_config.json", {"base_model_name_or_path": "x/tiny-4bit"})
    apply(plan_add(project, replace(wish, is_same_base=True), ENCODER))
    assert Project(project.path).catalogue.adapter("law").is_same_base


def test_names_that_exist_or_cannot_be_are_refused(project: Project, wish: Wish) -> None:
    apply(plan_add(project, wish, ENCODER))
    again = Project(project.path)
    with pytest.raises(ConfigError, match="has 'law' already: take another name, or remove it"):
        plan_add(again, wish, ENCODER)
    for name in ("base", "Law", "la w"):
        with pytest.raises(ConfigError, match="cannot be an expert's name"):
            plan_add(again, replace(wish, name=name), ENCODER)
    with pytest.raises(ConfigError, match="belongs to expert law"):
        plan_add(again, replace(wish, name="laws"), ENCODER)
    with pytest.raises(ConfigError, match="no expert 'music'"):
        plan_remove(again, "music", ENCODER)
