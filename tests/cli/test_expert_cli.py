"""The commands `init`, `expert` and `base`: what they print, and errors of one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import error_of, printed_json
from helpers import MakeAdapter, own_home

from compllm import paths
from compllm.build_scripts.fetch_base import select_checkpoint
from compllm.build_scripts.own import experts
from compllm.build_scripts.own.router import Refit, refit
from compllm.cli.app import run
from compllm.errors import ServerError

LAW = tuple(f"Which court decides on a tort of {word}?" for word in ("a", "b", "c", "d", "e", "f"))


@pytest.fixture
def folder(
    tiny_checkpoint: Path,
    encoder_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # type: ignore[no-untyped-def]
    """A project of the tiny base, in which the commands run."""
    monkeypatch.delenv("COMPLLM_CONFIG", raising=False)
    monkeypatch.delenv("COMPLLM_DEBUG", raising=False)
    with own_home(tmp_path / "home", encoder_dir):
        select_checkpoint(tiny_checkpoint)
        monkeypatch.chdir(tmp_path)
        assert run(["init", "mine"]) == 0
        monkeypatch.chdir(tmp_path / "mine")
        (tmp_path / "law.txt").write_text("\n".join(LAW))
        capsys.readouterr()
        yield tmp_path / "mine"


def test_an_expert_whose_questions_are_not_found_is_not_added(
    folder: Path,
    tiny_checkpoint: Path,
    make_adapter: MakeAdapter,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Beside the shipped experts five examples were too few, and the expert was never asked."""

    def refit_to_none(*given: Any) -> Refit:
        found = refit(*given)
        found.confusion[0] = (2, 4)  # of six questions two go to it
        return found

    monkeypatch.setattr(experts, "refit", refit_to_none)
    before = (folder / "compllm.toml").read_text()
    adapter = str(make_adapter(tiny_checkpoint))
    assert run(["expert", "add", "law", "--adapter", adapter, "--examples", "../law.txt"]) == 2
    said = capsys.readouterr().err
    assert "sends 2 of law's 6 examples to it, and nothing was changed: give more" in said
    assert (folder / "compllm.toml").read_text() == before


def test_an_endpoint_that_is_wrongly_named_changes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "compllm.toml").read_text()
    for options, said in (
        ([], "give one of --adapter DIR"),
        (["--url", "http://127.0.0.1:9", "--adapter", "x"], "give one of --adapter DIR"),
        (["--adapter", "x", "--model", "m"], "--model and --key-env belong to --url"),
        (["--url", "127.0.0.1:9"], "--url is '127.0.0.1:9': give http://HOST:PORT"),
        (["--url", "http://127.0.0.1:9"], "give --model NAME"),
        (["--url", "http://x:9", "--model", "m", "--key-env", "NO_KEY"], "NO_KEY, which is not"),
    ):
        assert run(["expert", "add", "wine", "--examples", "../law.txt", *options]) == 2
        assert said in error_of(capsys)
        assert (folder / "compllm.toml").read_text() == before


def test_a_project_is_made_and_its_experts_come_and_go(
    folder: Path,
    tiny_checkpoint: Path,
    make_adapter: MakeAdapter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = (folder / "compllm.toml").read_text()
    adapter = str(make_adapter(tiny_checkpoint))
    add = ["expert", "add", "law", "--adapter", adapter, "--examples", "../law.txt"]
    assert run(add) == 0
    printed = capsys.readouterr()
    assert printed.out == "expert law added (6 examples): no server runs: `compllm up` serves it\n"
    assert "each by a router that was fitted without it" in printed.err
    assert run(["expert", "list", "--json"]) == 0
    (expert,) = printed_json(capsys)["experts"]
    assert (expert["name"], expert["domain"], expert["examples"]) == ("law", "law", 6)
    assert run(["expert", "test", "law", "--questions", "../law.txt", "--json"]) == 0
    tried = printed_json(capsys)
    assert (tried["questions"], tried["routed"], tried["known"]) == (6, 6, 0)
    assert run(add) == 2
    assert "has 'law' already" in error_of(capsys)
    assert run(["expert", "remove", "law"]) == 0
    assert (folder / "compllm.toml").read_text() == before


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            "expert add x",
            "give one of --adapter DIR (a PEFT directory), --train FACTS and --url URL",
        ),
        ("expert add x --adapter a", "give --examples FILE (questions, one a line) or --describe"),
        ("expert add x --adapter no-such --examples ../law.txt", "no-such is not a directory"),
        ("expert add x --train ../law.txt", "neither .jsonl nor .csv"),
        ("expert add X --train f.csv", "'X' cannot be an expert's name"),
        ("expert remove x", "no expert 'x'"),
        ("expert test x --questions ../law.txt", "no expert 'x'"),
        ("init .", "is there already"),
        ("base use nothing", "no base 'nothing'"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], words: str, says: str
) -> None:
    before = (folder / "compllm.toml").read_text()
    assert run(words.split()) != 0
    assert says in error_of(capsys)
    assert [each.name for each in folder.iterdir()] == ["compllm.toml"]
    assert (folder / "compllm.toml").read_text() == before


def test_outside_a_project_the_remedy_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    assert run(["expert", "remove", "law"]) == 2
    assert "make a project with `compllm init DIR`" in error_of(capsys)


def test_the_base_in_use_is_shown_and_changed(
    folder: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["base", "show", "--json"]) == 0
    shown = printed_json(capsys)
    assert (shown["path"], shown["layers"]) == (str(tiny_checkpoint), 2)
    assert (shown["template"], shown["fits_shipped_adapters"]) == ("chatml", False)
    assert run(["base", "use", str(tiny_checkpoint), "--no-plans"]) == 0
    assert "the shipped adapters are of another base and are not used" in capsys.readouterr().out
    assert run(["base", "list"]) == 0
    assert "smollm2-135m-instruct" in capsys.readouterr().out
    assert paths.base_dir() == tiny_checkpoint
    assert json.dumps(shown)


def test_a_base_whose_plans_cannot_be_measured_is_used_all_the_same(
    folder: Path,
    tiny_checkpoint: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise ServerError("no free port")

    monkeypatch.setattr("compllm.cli.base_plans.measure_plans", fail)
    assert run(["base", "use", str(tiny_checkpoint)]) == 0
    assert "its plans could not be measured: no free port" in capsys.readouterr().err
    assert paths.base_dir() == tiny_checkpoint
