from __future__ import annotations

import pytest

from compllm.cli import run


def test_train_is_the_script_under_the_commands_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: compllm train")
    assert "--dataset" in out


def test_a_wrong_option_is_refused_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--quickly"]) == 2
    assert "usage: compllm train" in capsys.readouterr().err
