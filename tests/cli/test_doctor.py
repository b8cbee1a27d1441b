import importlib.metadata
import sys
from pathlib import Path

import pytest

from compllm import extras
from compllm.cli.doctor import Check, examine, is_healthy
from compllm.server import triton_files


@pytest.fixture(autouse=True)
def _empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    for name in ("COMPLLM_CATALOGUE", "COMPLLM_CONFIG", "TRITONSERVER"):
        monkeypatch.delenv(name, raising=False)


def found(name: str) -> Check:
    (check,) = (check for check in examine() if check.name == name)
    return check


def test_every_fault_says_what_to_do() -> None:
    assert all(check.remedy for check in examine() if check.status != "ok")


def test_names_are_unique() -> None:
    names = [check.name for check in examine()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", ["base model", "sentence encoder", "engine"])
def test_empty_cache_misses_what_up_makes(name: str) -> None:
    check = found(name)
    assert check.status == "missing"
    assert "compllm up" in check.remedy


def test_engine_with_half_a_manifest_is_missing(tmp_path: Path) -> None:
    directory = tmp_path / "engines" / "embedded"
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_text('{"version":')
    assert found("engine").status == "missing"
    assert "manifest.json" in found("engine").found


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("COMPLLM_SERVER_ADAPTERS_DIR", "server.adapters_dir = '/not/here' is not there"),
        ("COMPLLM_SERVER_TOKENIZER", "server.tokenizer = '/not/here': no readable tokenizer.json"),
    ],
)
def test_files_that_the_settings_name_and_are_not_there_are_missing(
    variable: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine's own adapters were sent instead, without a word."""
    monkeypatch.setenv(variable, "/not/here")
    check = found("settings")
    assert check.status == "missing"
    assert said in check.found
    assert check.remedy
    # Another machine's server has its own files.
    monkeypatch.setenv("COMPLLM_SERVER_URL", "elsewhere:8001")
    assert all(check.name != "settings" for check in examine())


def test_a_note_is_no_fault() -> None:
    assert is_healthy((Check("a", "ok", "x"), Check("b", "note", "x", "y")))
    assert not is_healthy((Check("a", "missing", "x", "y"),))


def test_interpreter_without_shared_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_files.sysconfig, "get_config_var", lambda _: "libpython3.11.a")
    check = found("shared libpython")
    assert check.status == "missing"
    assert "--enable-shared" in check.remedy


def test_tritonserver_that_is_named_but_not_there_is_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TRITONSERVER", "/nowhere/tritonserver")
    assert found("tritonserver").status == "missing"


def test_part_that_is_not_installed_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "compllm.server.triton_server", None)
    monkeypatch.delattr("compllm.server.triton_server", raising=False)
    assert found("server").status == "missing"
    assert "compllm[embedded]" in found("server").remedy


def test_openvino_of_another_release_than_the_operation_is_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2020.1")
    check = found("openvino")
    assert check.status == "missing"
    assert check.remedy.startswith("pip install openvino==")


def test_broken_catalogue_is_told_and_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "experts.toml"
    broken.write_text("[base\n")
    monkeypatch.setenv("COMPLLM_CATALOGUE", str(broken))
    assert found("catalogue").status == "missing"
    assert found("server").status == "note"


def test_unknown_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    assert found("python").status == "missing"


def test_package_that_up_needs_and_is_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of [embedded], as our own metadata lists it: accelerate was not looked for."""
    needed = ("accelerate>=1.0", "unheard-of>=2", "numpy>=99")
    lines = [f'{each}; extra == "embedded"' for each in needed]
    monkeypatch.setattr(extras.importlib.metadata, "requires", lambda name: lines)
    check = found("packages")
    assert check.status == "missing"
    assert "unheard-of is not installed" in check.found
    assert "numpy is " in check.found
    assert "accelerate" not in check.found
    assert "compllm[embedded]" in check.remedy


def test_packages_of_this_environment_are_all_there() -> None:
    assert found("packages").status == "ok"
