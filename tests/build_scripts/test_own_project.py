"""A project's file: made with every setting, found, and changed without losing what is in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from compllm.build_scripts.own.project import NewExpert, Project, make_project
from compllm.catalogue import load_catalogue
from compllm.cli.shared import found_config
from compllm.config import Config, flat_values, load_config, read_toml
from compllm.errors import ConfigError

LAW = NewExpert("law", "the law", 77, ("What is a tort?", 'Who wrote "Leviathan"?'))


def made(folder: Path, *, has_shipped: bool = True) -> Path:
    return make_project(folder, "sha256:x", "chatml", has_shipped=has_shipped)


def uncommented(text: str) -> str:
    """With every setting that stands there as a comment."""
    lines = (line.removeprefix("#") if line[:2].strip("# ") else line for line in text.splitlines())
    return "\n".join(lines)


def test_a_new_project_is_the_shipped_catalogue_with_default_settings(tmp_path: Path) -> None:
    path = made(tmp_path / "new")
    shipped, catalogue = load_catalogue(), load_catalogue(path)
    assert load_config(path, environ={}) == Config(catalogue=str(path))
    assert (catalogue.experts, catalogue.examples) == (shipped.experts, shipped.examples)
    assert catalogue.out_of_domain == shipped.out_of_domain
    assert catalogue.router.head == shipped.router.head
    assert [(a.name, a.id) for a in catalogue.adapters] == [
        (a.name, a.id) for a in shipped.adapters
    ]
    roles = (catalogue.generator, catalogue.aggregator, catalogue.confidence)
    assert roles == (shipped.generator, shipped.aggregator, shipped.confidence)


def test_a_project_names_every_setting_at_its_default_with_a_comment(tmp_path: Path) -> None:
    path = made(tmp_path, has_shipped=False)
    text = path.read_text()
    path.write_text(uncommented(text))
    table = read_toml(path)
    named = {f"{s}.{key}" for s, keys in table.items() if s != "catalogue" for key in keys}
    assert named == flat_values(Config()).keys() - {"catalogue"}
    assert load_config(path, environ={}) == Config(catalogue=str(path))
    lines = text.splitlines()
    settings = [n for n, line in enumerate(lines) if line[:1] == "#" and line[1:2].islower()]
    assert len(settings) == len(named)
    assert all(lines[number - 1].startswith("# ") for number in settings)


@pytest.mark.parametrize("has_shipped", [True, False])
def test_removing_an_expert_is_the_inverse_of_adding_it(tmp_path: Path, has_shipped: bool) -> None:
    path = made(tmp_path, has_shipped=has_shipped)
    before = path.read_text()
    project = Project(path)
    project.add(LAW)
    project.set_head("router-1.npz")
    catalogue = project.save()
    assert catalogue.experts[-1].name == "law"
    assert catalogue.experts[-1].adapter_id == 77
    assert catalogue.examples[-1] == LAW.examples
    assert catalogue.adapter("law").path == tmp_path / "adapters/law"
    assert catalogue.router.head == tmp_path / "router-1.npz"
    again = Project(path)
    again.remove("law")
    again.set_head("shipped:routers/logistic.npz" if has_shipped else None)
    again.save()
    assert path.read_text() == before


def test_what_a_user_wrote_into_the_file_stays(tmp_path: Path) -> None:
    path = made(tmp_path, has_shipped=False)
    text = path.read_text().replace("#max_nodes = 64", "max_nodes = 12  # enough for us")
    path.write_text(text)
    project = Project(path)
    project.add(LAW)
    project.save()
    assert "max_nodes = 12  # enough for us" in path.read_text()
    assert load_config(path, environ={}).limits.max_nodes == 12


def test_a_change_that_cannot_be_read_back_is_not_kept(tmp_path: Path) -> None:
    path = made(tmp_path, has_shipped=False)
    before = path.read_text()
    project = Project(path)
    project.add(NewExpert("No Name", "x", 5, ("Why?",)))
    with pytest.raises(ConfigError, match="lower-case name"):
        project.save()
    assert path.read_text() == before


def test_a_second_project_in_a_folder_is_refused(tmp_path: Path) -> None:
    before = made(tmp_path).read_text()
    with pytest.raises(ConfigError, match="is there already"):
        made(tmp_path)
    assert (tmp_path / "compllm.toml").read_text() == before


def test_settings_without_a_catalogue_are_no_project(tmp_path: Path) -> None:
    path = tmp_path / "compllm.toml"
    path.write_text("[limits]\nmax_nodes = 3\n")
    with pytest.raises(ConfigError, match="holds no table"):
        Project(path)


def test_an_error_in_a_projects_catalogue_names_the_key_in_the_file(tmp_path: Path) -> None:
    path = made(tmp_path, has_shipped=False)
    path.write_text(path.read_text().replace("threshold = 0.271", "threshold = 7"))
    with pytest.raises(ConfigError, match=r"catalogue\.router\.threshold = 7: expected a number"):
        load_catalogue(path)


def test_commands_find_the_project_of_their_folder_and_of_those_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = made(tmp_path / "mine", has_shipped=False)
    below = path.parent / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.delenv("COMPLLM_CONFIG", raising=False)
    monkeypatch.chdir(below)
    assert found_config(None) == path
    assert found_config(Path("other.toml")) == Path("other.toml")
    monkeypatch.setenv("COMPLLM_CONFIG", "named.toml")
    assert found_config(None) is None
    monkeypatch.delenv("COMPLLM_CONFIG")
    monkeypatch.chdir(tmp_path)
    assert found_config(None) is None


def test_a_role_and_an_expert_may_go_back_to_their_shipped_adapters(tmp_path: Path) -> None:
    """The table of a shipped generator went with the first one of one's own."""
    path = made(tmp_path)
    shipped = load_catalogue(path).adapters
    project = Project(path)
    project.remove("chemistry")
    for name in ("generator-1", "generator-2"):
        project.set_role("generator", name, 77)
    catalogue = project.save()
    assert catalogue.generator is not None
    assert catalogue.generator.name == "generator-2"
    assert catalogue.adapters[: len(shipped)] == shipped
    assert [adapter.name for adapter in catalogue.adapters[len(shipped) :]] == ["generator-2"]
