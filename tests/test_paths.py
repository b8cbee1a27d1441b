"""Where things are on disk: one variable moves the whole cache, and data files are found."""

from __future__ import annotations

from pathlib import Path

import pytest

from compllm import paths


def test_the_home_of_the_environment_holds_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    for place in (paths.base_dir(), paths.encoder_dir(), paths.engine_dir(), paths.run_dir()):
        assert place.is_relative_to(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_chosen_checkpoint_replaces_the_default_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    assert paths.selected_base() is None
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "selected").symlink_to(tmp_path / "mine")
    assert paths.base_dir() == paths.selected_base() == tmp_path / "mine"


@pytest.mark.parametrize("name", ["triton_repo", "engines", "build_scripts"])
def test_each_data_folder_is_found(name: str) -> None:
    assert paths.resource_dir(name).is_dir()


def test_a_missing_data_folder_is_an_error() -> None:
    with pytest.raises(FileNotFoundError, match="no 'absent' folder"):
        paths.resource_dir("absent")
