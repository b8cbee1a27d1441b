"""The map of the modules: package docstrings name the modules, documents name the rooms.

Each is compared with the tree, so that a new room or module is named where a reader looks for it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "runtime" / "compllm"
ROOMS = sorted(each.name for each in PACKAGE.iterdir() if (each / "__init__.py").is_file())
PACKAGES = sorted(
    str(each.parent.relative_to(ROOT))
    for folder in (*(PACKAGE / room for room in ROOMS), ROOT / "benchmarks")
    if folder.name != "build_scripts"  # scripts, which `docs/` names
    for each in folder.rglob("__init__.py")
)
_README_ROOM = re.compile(r"^    (\w+)/ {2,}\S", re.MULTILINE)


def named_rooms(page: str) -> list[str]:
    """The rooms of a document's list: lines of a folder's name and what it holds."""
    return sorted(_README_ROOM.findall(page))


def test_the_readme_lists_the_rooms_of_the_package() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert named_rooms(readme) == [room for room in ROOMS if room != "build_scripts"]


def test_contributing_leaves_the_list_to_the_readme() -> None:
    assert named_rooms((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_a_packages_docstring_names_each_of_its_modules(package: str) -> None:
    folder = ROOT / package
    docstring = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8"))) or ""
    modules = {each.stem for each in folder.glob("*.py")} - {"__init__"}
    modules |= {each.parent.name for each in folder.glob("*/__init__.py")}
    assert sorted(modules - set(re.findall(r"\w+", docstring))) == []


def test_a_room_of_a_document_is_a_line_with_a_folder() -> None:
    page = "    routing/       text -> expert\n    make test   all\n`lab/`  tools\n    a/b/    c\n"
    assert named_rooms(page) == ["routing"]
