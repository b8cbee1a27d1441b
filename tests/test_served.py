"""The settings and the catalogue of a running server, as a client takes them; no server runs here
(integration/ does that)."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from path_parts import CATALOGUE

from compllm import paths
from compllm.catalogue import Catalogue, load_catalogue
from compllm.config import Config, GateConfig, load_config
from compllm.connect import load_client_config
from compllm.errors import ConfigWarning
from compllm.served import difference_from, settings_of, summary_of
from compllm.server.triton_process import start_ticks
from compllm.server.triton_state import ServerInfo
from compllm.types import Expert

PORT = 4321


def pretend_server(settings: str) -> None:
    """The state file of `up`, of this process."""
    info = ServerInfo(
        os.getpid(),
        start_ticks(os.getpid()),
        os.getpid(),
        "an-id",
        PORT,
        1,
        2,
        "a.log",
        settings=settings,
    )
    paths.run_dir().mkdir(parents=True, exist_ok=True)
    (paths.run_dir() / "server.json").write_text(json.dumps(asdict(info)))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))


@pytest.fixture
def served(tmp_path: Path) -> Config:
    """Settings of a server that was started in another directory."""
    catalogue = replace(CATALOGUE, path=tmp_path / "mine.toml")
    config = load_config(
        overrides={"limits.max_nodes": 7, "server.url": "127.0.0.1:1", "gate.risk": 0.2}, environ={}
    )
    pretend_server(settings_of(config, catalogue))
    return replace(config, catalogue=str(catalogue.path), server=replace(config.server, url=""))


def test_what_is_not_said_is_as_the_running_server_has_it(served: Config) -> None:
    assert load_client_config() == served


def test_what_is_said_comes_before_the_server(
    served: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own.toml"
    file.write_text('catalogue = "own-experts.toml"\n')
    monkeypatch.setenv("COMPLLM_LIMITS_MAX_DEPTH", "3")
    with pytest.warns(ConfigWarning):
        found = load_client_config(file, {"gate.mode": "on", "compose.policy": None})
    assert (found.catalogue, found.limits.max_depth, found.gate.mode) == (
        "own-experts.toml",
        3,
        "on",
    )
    assert (found.limits.max_nodes, found.gate.risk) == (7, 0.2)


def test_the_environment_is_warned_of_where_it_differs(
    served: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COMPLLM_ANSWER_ABSTAIN gave other answers than the server, without a word."""
    file = tmp_path / "own.toml"
    file.write_text("[limits]\nmax_depth = 3\n")
    monkeypatch.setenv("COMPLLM_CONFIG", str(file))
    monkeypatch.setenv("COMPLLM_ANSWER_ABSTAIN", "never")
    monkeypatch.setenv("COMPLLM_LIMITS_MAX_NODES", "7")  # as the server has it
    with pytest.warns(ConfigWarning) as caught:
        assert load_client_config().answer.abstain == "never"
    (warning,) = caught
    assert str(warning.message) == (
        "your environment has other settings than the running server, and they count here: "
        "answer.abstain = never (COMPLLM_ANSWER_ABSTAIN; the server has experts), "
        "limits.max_depth = 3 (COMPLLM_CONFIG; the server has 32)"
    )


def test_what_is_given_explicitly_is_not_warned_of(
    served: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own.toml"
    file.write_text("[limits]\nmax_depth = 3\n")
    monkeypatch.setenv("COMPLLM_SERVER_READY_TIMEOUT_S", "3")
    with warnings.catch_warnings(action="error"):
        found = load_client_config(file, {"answer.abstain": "never"})
    assert (found.limits.max_depth, found.answer.abstain) == (3, "never")


def test_a_relative_path_in_the_environment_of_both_is_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMPLLM_GATE_FILE", "gate.npz")
    pretend_server(settings_of(load_config(), CATALOGUE))
    with warnings.catch_warnings(action="error"):
        assert load_client_config().gate.file == "gate.npz"


@pytest.mark.parametrize(
    ("url", "is_its"),
    [(f"127.0.0.1:{PORT}", True), (f"localhost:{PORT}", True), ("other:8001", False)],
)
def test_another_servers_address_leaves_it_alone(served: Config, url: str, is_its: bool) -> None:
    found = load_client_config(overrides={"server.url": url})
    assert (found.catalogue == served.catalogue) is is_its
    assert found.server.url == url


@pytest.mark.parametrize("settings", ["", "{", "[]"])
def test_a_server_without_settings_is_accepted(settings: str) -> None:
    """One of an earlier version, or without the model comp_llm."""
    pretend_server(settings)
    assert load_client_config() == load_config()


def test_a_setting_of_another_version_is_left_out() -> None:
    pretend_server('{"limits.max_wings": 2, "limits.max_nodes": 9}')
    assert load_client_config() == load_config(overrides={"limits.max_nodes": 9})


def test_paths_hold_in_any_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(Config(), gate=GateConfig(file="gate.npz"))
    settings = json.loads(settings_of(config, replace(CATALOGUE, path=Path("experts.toml"))))
    assert settings["catalogue"] == str(tmp_path / "experts.toml")
    assert settings["gate.file"] == str(tmp_path / "gate.npz")
    assert settings["server.tokenizer"] == ""


def changed(**values: object) -> Catalogue:
    return replace(CATALOGUE, **values)  # type: ignore[arg-type]


def difference(catalogue: Catalogue) -> str | None:
    return difference_from(json.loads(summary_of(CATALOGUE)), catalogue)


def test_the_same_catalogue_at_another_place_is_no_difference() -> None:
    assert difference(CATALOGUE) is None
    assert difference(changed(path=Path("/elsewhere/experts.toml"))) is None


def test_other_experts_are_named() -> None:
    said = difference(changed(experts=(Expert("biology", "life", ""),)))
    assert said == (
        "serves the experts chemistry, mathematics; your catalogue (experts.toml) has biology"
    )


def test_other_adapters_are_named() -> None:
    chemistry, mathematics = CATALOGUE.experts
    said = difference(changed(experts=(replace(chemistry, adapter_id=99), mathematics)))
    assert said == "has other adapters than your catalogue (experts.toml) for chemistry"


def test_other_examples_are_a_difference() -> None:
    said = difference(changed(examples=(("Why?",), ("How?",))))
    assert said is not None
    assert "examples" in said


def test_an_unknown_summary_is_accepted() -> None:
    assert difference_from({}, CATALOGUE) is None


def test_the_summary_of_the_shipped_catalogue_is_short_and_whole() -> None:
    catalogue = load_catalogue()
    summary = summary_of(catalogue)
    assert len(summary) < 2000
    experts = json.loads(summary)["experts"]
    assert experts == {expert.name: expert.adapter_id for expert in catalogue.experts}
