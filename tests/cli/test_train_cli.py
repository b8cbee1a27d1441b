from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compllm.build_scripts import train_gate, train_lora, train_router
from compllm.cli.app import run


def test_train_is_the_script_under_the_commands_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: compllm train")
    assert "--dataset" in out
    assert "compllm train router" in out
    assert "compllm train gate" in out


@pytest.mark.parametrize(
    ("name", "option"), [("lora", "--dataset"), ("router", "--subjects"), ("gate", "--requests")]
)
def test_a_first_word_names_what_is_trained(
    name: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: compllm train {name} [-h]")
    assert option in out


@pytest.mark.parametrize("script", [train_lora, train_router, train_gate])
def test_every_option_says_what_it_is_and_its_default(script: Any) -> None:
    for action in script.make_parser(None)._actions:
        assert len(action.help or "") > 12, action.option_strings
        has_default = action.default not in (None, False, [], "==SUPPRESS==")
        if has_default and not isinstance(action.default, Path):
            assert "default: " in action.help, action.option_strings


def test_options_behind_the_first_word_reach_its_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "absent"
    assert run(["train", "gate", "--generator", str(absent), "--out", str(tmp_path / "g.npz")]) == 1
    assert str(absent) in capsys.readouterr().err
    assert run(["train", "router", "--subjects", str(absent), "--out", str(tmp_path)]) == 1
    assert str(absent) in capsys.readouterr().err


def test_an_unknown_first_word_tells_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "roter"]) == 2
    assert "no training 'roter': there are lora, router, gate" in capsys.readouterr().err


def test_a_wrong_option_is_refused_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", "--quickly"]) == 2
    assert "usage: compllm train" in capsys.readouterr().err
