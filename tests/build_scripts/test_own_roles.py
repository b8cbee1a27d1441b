"""A generator is trained on a user's plans and put into the project, as a whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers import MakeAdapter
from test_own_experts import engine_adapters, files, project

from compllm.build_scripts import train_role as script
from compllm.build_scripts.own import experts, roles
from compllm.build_scripts.own.experts import install_role
from compllm.build_scripts.own.project import Project
from compllm.build_scripts.own.roles import read_plans, train_role
from compllm.cli.app import run
from compllm.errors import ConfigError, ServerError
from compllm.plan import PlanLimits

__all__ = ["project"]  # a fixture
LIMITS = PlanLimits()


def plans(tmp_path: Path, count: int = 20, **last: object) -> Path:
    records = [
        {
            "question": f"What are {n} and {n + 1}?",
            "plan": f"1 | What is {n}?\n2 | What is {n + 1}?",
        }
        for n in range(count)
    ]
    path = tmp_path / "plans.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in [*records, last] if each))
    return path


def test_both_forms_of_a_decomposition_are_read(tmp_path: Path) -> None:
    steps = {"question": "Half of iron?", "steps": ["Iron?", "Half of #1?"], "parents": [[], [0]]}
    *_, record = read_plans(plans(tmp_path, 19, **steps), LIMITS)
    assert record == {
        "id": "own-19",
        "source": "own",
        "question": "Half of iron?",
        "plan": "1 | Iron?\n2 <1> | Half of #1?",
    }


@pytest.mark.parametrize(
    ("last", "said"),
    [
        ({"plan": "1 | A?"}, "line 21 has no 'question'"),
        ({"question": " ", "plan": "1 | A?"}, "line 21: question is ' '"),
        ({"question": "A?"}, "line 21 has neither 'plan' nor 'steps'"),
        ({"question": "A?", "plan": "1 <2> | A?"}, "line 21: "),
        ({"question": "What are 3 and 4?", "plan": "1 | A?"}, "line 21: .* has another plan in an"),
    ],
)
def test_a_bad_decomposition_is_named(last: dict[str, object], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        read_plans(plans(tmp_path, 20, **last), LIMITS)


def test_too_few_plans_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 19 different plans: give at least 20"):
        read_plans(plans(tmp_path, 19), LIMITS)


def test_a_trained_generator_is_the_projects_and_replaces_the_one_before(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = []
    for count in (20, 40):
        path = plans(tmp_path, count)
        outcome = train_role(project, "generator", path, epochs=1, max_minutes=0, is_yes=True)
        assert outcome == "no server runs: `compllm up` serves it"
        generator = Project(project.path).catalogue.generator
        assert generator is not None
        names.append(generator.name)
        assert engine_adapters() == [generator.name]
        assert [each.name for each in (project.folder / "adapters").iterdir()] == [generator.name]
    assert len(set(names)) == 2
    before = files(project.folder)
    with pytest.raises(ConfigError, match="writes 0% of the held-out examples exactly"):
        train_role(Project(project.path), "generator", path, epochs=1, max_minutes=0)
    again = train_role(project, "generator", path, epochs=1, max_minutes=0, is_yes=True)
    assert again == "it is the one that the project has, nothing was changed"
    assert files(project.folder) == before
    assert "held-out accuracy: " in capsys.readouterr().err
    assert Project(project.path).catalogue.aggregator is None


def test_what_fails_leaves_the_project_as_it_was(
    project: Project, tiny_checkpoint: Path, make_adapter: MakeAdapter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = files(project.folder)

    def fails(*_: object) -> str:
        raise ServerError("no space")

    monkeypatch.setattr(experts, "make_live", fails)
    with pytest.raises(ServerError):
        install_role(project, "aggregator", "mine", make_adapter(tiny_checkpoint))
    assert files(project.folder) == before
    assert engine_adapters() == []


def test_sets_of_another_kind_in_the_folder_are_left_alone(
    project: Project, tmp_path: Path
) -> None:
    other = tmp_path / "home" / "datasets" / "mine.jsonl"
    other.parent.mkdir(parents=True)
    other.write_text("{}\n")
    with pytest.raises(ConfigError, match="holds other sets, without generator, generator-more"):
        train_role(project, "generator", None, epochs=1, max_minutes=0)
    assert other.read_text() == "{}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generator"], "make a project with `compllm init DIR`"),
        (["aggregator", "--plans", "p", "--config", "c"], "--plans belongs to the generator"),
        (["generator", "--epochs", "0", "--config", "c"], "--epochs must be above 0"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run(["train", *arguments]) == 1
    assert said in capsys.readouterr().err


def test_the_command_hands_its_options_on(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[object] = []

    def trained(mine: Project, *given: object, **more: object) -> str:
        seen.extend((mine.path, *given, more))
        return "served"

    monkeypatch.setattr(script, "train_role", trained)
    monkeypatch.chdir(project.folder)
    assert run(["train", "aggregator", "--max-minutes", "2"]) == 0
    assert seen == [
        project.path,
        "aggregator",
        None,
        {"epochs": None, "max_minutes": 2.0, "is_yes": False},
    ]
    assert capsys.readouterr().out == "the project has its own aggregator: served\n"
    assert roles.ROLES == ("generator", "aggregator")
