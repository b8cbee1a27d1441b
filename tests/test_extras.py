"""Which extra brings what, and the hints that are made of it."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compllm import extras
from compllm.build_scripts.staging import run_script
from compllm.cli import console, draw
from compllm.errors import ConfigError
from compllm.lab.explain import gantt

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
# Brought by packages that are required: nothing of ours names them.
BROUGHT = {"torch", "google", "grpc", "click", "pydantic", "huggingface_hub"}
# Of Triton, of the interpreter that runs there, and of NVIDIA's image.
ELSEWHERE = {"triton_python_backend_utils", "c_python_backend_utils", "tensorrt_llm"}


@pytest.fixture(autouse=True)
def _metadata_of_this_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an installation made now would have: the one that runs may be older."""
    lines = list(PROJECT["dependencies"])
    for extra, requirements in EXTRAS.items():
        for each in requirements:
            bare, _, marker = each.partition(";")
            condition = f'extra == "{extra}"' + (f" and ({marker.strip()})" if marker else "")
            lines.append(f"{bare.strip()}; {condition}")
    monkeypatch.setattr(extras.importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(extras, "extra_names", lambda: tuple(EXTRAS))


def imported(folder: Path) -> dict[str, Path]:
    """Top-level packages that are imported below the folder, anywhere in a file; who does."""
    found: dict[str, Path] = {}
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names = [node.module]
            found |= {name.partition(".")[0]: path for name in names}
    return found


def names(extra: str) -> set[str]:
    return {canonicalize_name(each.name) for each in extras.requirements(extra)}


def holders(module: str) -> set[str]:
    distribution = extras.distribution_of(module)
    return {extra for extra in ("", *EXTRAS) if distribution in names(extra)}


def test_what_up_and_the_readme_need_is_in_the_embedded_extra() -> None:
    assert {"accelerate", "matplotlib", "openvino", "nvidia-pytriton"} <= names("embedded")


def test_every_package_that_is_imported_is_required_and_its_hint_names_the_extra() -> None:
    ours = {"compllm", "build_scripts", "benchmarks", *sys.stdlib_module_names}
    found = imported(ROOT / "runtime" / "compllm") | imported(ROOT / "build_scripts")
    for name in set(found) - ours - BROUGHT - ELSEWHERE:
        held_by = holders(name)
        assert held_by, f"{found[name]} imports {name}, which no extra of pyproject.toml holds"
        hint = extras.hint(ImportError(f"no {name}", name=f"{name}.part"))
        assert hint in {extras.install_command(extra) for extra in held_by}, name


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("matplotlib.figure", "pip install 'compllm[plot]'"),
        ("accelerate", "pip install 'compllm[embedded]'"),
        ("pytriton", "pip install 'compllm[embedded]'"),
        ("peft", "pip install 'compllm[train]'"),
        ("Bio.Data", "pip install 'compllm[datasets]'"),
        ("openvino_genai", "pip install 'compllm[bench]'"),
        ("tritonclient.grpc", "pip install compllm"),
        ("unheard_of", "pip install 'compllm[embedded]'"),
    ],
)
def test_hint_names_the_extra_of_the_module(module: str, command: str) -> None:
    assert extras.hint(ModuleNotFoundError("no", name=module)) == command


def test_command_line_names_the_extra_of_the_module() -> None:
    message, status = console.explain(ModuleNotFoundError("No module 'peft'", name="peft"))
    assert "pip install 'compllm[train]'" in message
    assert status == 1


def test_script_names_the_extra_of_the_module(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        raise ModuleNotFoundError("No module named 'mendeleev'", name="mendeleev")

    assert run_script(work) == 1
    said = capsys.readouterr().err
    assert said == "error: No module named 'mendeleev': pip install 'compllm[datasets]'\n"


@pytest.mark.parametrize("draws", [draw.draw_png, gantt.draw_gantt])
def test_picture_without_matplotlib_names_its_extra(
    draws: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [each for each in sys.modules if each.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"compllm\[plot\]"):
        draws(None)  # type: ignore[operator]


def test_requirement_that_is_not_met_says_why() -> None:
    assert extras.problem_of(Requirement("numpy>=1")) is None
    assert extras.problem_of(Requirement("unheard-of>=1")) == "unheard-of is not installed"
    assert str(extras.problem_of(Requirement("numpy>=99"))).endswith("needed is >=99")


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(each.partition("==")[0]) for each in lines if "==" in each}
    wanted = {name for extra in ("", *EXTRAS) if extra != "trtllm" for name in names(extra)}
    assert wanted <= pinned


def test_remedies_name_commands_that_an_installed_package_has() -> None:
    """No script of a checkout: its folder is not where the package was installed."""
    for path in (ROOT / "runtime" / "compllm").rglob("*.py"):
        if "build_scripts" in path.parts:
            continue
        for line in path.read_text(encoding="utf-8").splitlines():
            is_named = "python build_scripts/" in line or "python -m build_scripts" in line
            assert not is_named, f"{path.name}: {line.strip()}"


def test_the_image_is_sent_to_its_own_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There [embedded] cannot be resolved: TensorRT-LLM pins another transformers."""
    folder = tmp_path / "tensorrt_llm-1.2.1.dist-info"
    folder.mkdir()
    text = "Metadata-Version: 2.1\nName: tensorrt_llm\nVersion: 1.2.1\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert extras.hint(ModuleNotFoundError("no", name="gguf")) == "pip install 'compllm[gpu]'"
