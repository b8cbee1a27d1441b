"""The command line with an example catalogue and without a server."""

from pathlib import Path

import pytest
from command_line import CATALOGUE, REPLIES, script

from compllm.testing import ScriptedBackend


@pytest.fixture
def example_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home of its own, and a catalogue of one expert."""
    catalogue = tmp_path / "experts.toml"
    catalogue.write_text(CATALOGUE)
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    monkeypatch.setenv("COMPLLM_CATALOGUE", str(catalogue))
    monkeypatch.setenv("COMPLLM_COMPOSE_POLICY", "always")
    monkeypatch.delenv("COMPLLM_DEBUG", raising=False)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> ScriptedBackend:
    return script(monkeypatch, *REPLIES)
