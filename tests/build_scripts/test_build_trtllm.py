"""The command line: a dry run anywhere, a build in the image alone, every failure in one line."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers import MakeAdapter
from trtllm_tools import Tools, write_catalogue

from compllm.build_scripts import build_trtllm
from compllm.build_scripts.trtllm.record import TrtManifest
from compllm.formats.adapters import read_peft
from compllm.formats.checkpoint import validate_checkpoint

Run = tuple[int, str, str]


@pytest.fixture(scope="module")
def catalogue(
    tiny_checkpoint: Path, make_adapter: MakeAdapter, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = make_adapter(tiny_checkpoint, "chem", rank=4, modules=["q_proj"])
    number = read_peft(folder, validate_checkpoint(tiny_checkpoint), "chem").task_id
    path = tmp_path_factory.mktemp("catalogue") / "experts.toml"
    return write_catalogue(path, {"chem": (folder, number)}, "chem")


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    return Tools(tmp_path / "image", monkeypatch)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Run:
    capsys.readouterr()
    status = build_trtllm.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def given(catalogue: Path, tiny_checkpoint: Path, tmp_path: Path) -> Sequence[object]:
    out = tmp_path / "place" / "engines"
    return ("--catalogue", catalogue, "--checkpoint", tiny_checkpoint, "--out", out)


def test_dry_run_prints_commands_and_files_and_writes_nothing(
    given: Sequence[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(capsys, *given, "--dry-run", "--topology", "shared", "--gpu", "l4")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    commands = [line.split()[1:] for line in lines if line.startswith("run ")]
    assert [words[1].rsplit("/", 1)[-1] for words in commands] == [
        "convert_checkpoint.py",
        "--checkpoint_dir",
        "hf_lora_convert.py",
    ]
    assert "--weight_only_precision int8" in out
    files = [Path(line.split()[1]).name for line in lines if line.startswith("file ")]
    assert files == [
        "config.json",
        "rank0.engine",
        "model.lora_weights.npy",
        "model.lora_config.npy",
        "tokenizer.json",
        "manifest.json",
    ]
    assert not (tmp_path / "place").exists()


def test_build_and_check_in_the_image(
    given: Sequence[object], tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "place" / "engines"
    status, out, _ = run(capsys, *given, "--examples", tools.examples)
    assert status == 0
    assert "adapter   chem: rank 4, lora_task_id" in out
    TrtManifest.read(place).verify(place)
    assert run(capsys, "--check", place)[:2] == (0, f"{place}: 1 engines fit this image and GPU\n")
    tools.gpus("0, NVIDIA A100-SXM4-80GB, 8.0, 81920, 590.44.01")
    status, _, err = run(capsys, "--check", place)
    assert status == 1
    assert "GPU 0 is NVIDIA A100-SXM4-80GB (8.0): build it again" in err
    assert err.count("\n") == 1


def test_dry_run_downloads_no_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path / "empty"))
    status, _, err = run(capsys, "--dry-run")
    assert status == 1
    assert "a dry run downloads nothing: fetch it with fetch_base.py, or name a checkpoint" in err
    assert not (tmp_path / "empty").exists()


def test_dry_run_tells_the_commands_of_the_build(
    given: Sequence[object], tools: Tools, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Word for word what the manifest says was run."""
    here = (*given, "--examples", tools.examples)
    _, out, _ = run(capsys, *here, "--dry-run")
    assert run(capsys, *here)[0] == 0
    (engine,) = TrtManifest.read(tmp_path / "place" / "engines").engines
    printed = [line.removeprefix("run       ") for line in out.splitlines() if line[:4] == "run "]
    assert list(engine.commands) == printed[:2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "TensorRT-LLM is missing (no trtllm-build): run this inside the image tritonserver:"),
        (["--dry-run", "--gpu", "b300"], "gpu = 'b300': expected one of h100"),
        (["--dry-run", "--settings", "/nowhere.toml"], "cannot read /nowhere.toml"),
        (["--dry-run", "--checkpoint", "/nowhere"], "checkpoint /nowhere is not a directory"),
        (["--dry-run", "--num-gpus", "0"], "num_gpus = 0: expected an integer from 1"),
        (["--check", "/nowhere"], "/nowhere holds no finished TensorRT-LLM engines"),
    ],
)
def test_errors_are_one_line(
    given: Sequence[object],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: Sequence[str],
    said: str,
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    status, _, err = run(capsys, *given, *arguments)
    assert status == 1
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "place").exists()


def test_unwritable_place_is_one_line(
    given: Sequence[object], tools: Tools, capsys: pytest.CaptureFixture[str]
) -> None:
    """/proc refuses new folders to everybody, root too."""
    out = ("--out", "/proc/engines/trtllm")
    status, _, err = run(capsys, *given, "--examples", tools.examples, *out)
    assert (status, err.count("\n")) == (1, 1)
    assert "/proc/engines" in err
    assert tools.calls() == []


def test_extra_pins_the_release_and_nothing_else_needs_it() -> None:
    """The package installs inside NVIDIA's image alone."""
    settings = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    project = settings["project"]
    extras = project["optional-dependencies"]
    assert extras["trtllm"] == ["tensorrt-llm==1.2.1"]
    others = [
        *project["dependencies"],
        *(each for name in extras if name != "trtllm" for each in extras[name]),
    ]
    assert not [each for each in others if "tensorrt" in each or "trtllm" in each]
    # It pins transformers below what the embedded engine needs: no resolver finds both.
    assert [{"extra": "trtllm"}, {"extra": "embedded"}] in settings["tool"]["uv"]["conflicts"]


def test_nothing_imports_tensorrt_llm() -> None:
    top = Path(__file__).parents[2]
    for folder in ("runtime/compllm", "build_scripts", "benchmarks", "triton_repo"):
        for path in (top / folder).rglob("*.py"):
            lines = path.read_text(encoding="utf-8").splitlines()
            assert not [
                line for line in lines if line.startswith(("import tensorrt", "from tensorrt"))
            ], path
