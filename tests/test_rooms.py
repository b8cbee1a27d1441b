"""Which room may import which: read from the syntax trees, lazy imports and those for types too."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "runtime" / "compllm"

# Modules at the root of the package. `_core` is the C++ module.
ALONE = frozenset({"types", "errors", "paths"})
VOCABULARY = ALONE | {
    *("_core", "backend", "catalogue", "config", "plan", "prompts", "served", "spelling"),
    *("extras", "gc_freeze", "niceness", "plural", "printable", "storage", "testing", "trace"),
}
PATH = frozenset(
    {
        *("pipeline", "query_run", "query_check", "assembly", "decompose", "graph", "execute"),
        *("plan_draws", "compose", "asked", "confidence", "copies", "loops", "stage", "usage"),
        "prompt_length",
    }
)
# Room -> rooms that it may import besides itself and the vocabulary. ROOM.MODULE: that module only.
RULES: Mapping[str, frozenset[str]] = {
    "vocabulary": frozenset(),
    "routing": frozenset({"embedded.matmul_offload", "embedded.cores"}),
    "scheduling": frozenset(),
    "formats": frozenset(),
    "embedded": frozenset({"formats"}),
    "backends": frozenset({"formats"}),
    "server": frozenset(),
    "path": frozenset({"routing", "scheduling", "connect"}),
    "connect": frozenset({"routing", "backends", "server"}),
    "package": frozenset({"path"}),  # compllm/__init__.py
    "frontends": frozenset({"path", "routing", "backends", "embedded", "formats", "lab.explain"}),
    "lab": frozenset({"path", "routing", "scheduling", "backends"}),
    "cli": frozenset(
        {
            *("path", "connect", "package", "routing", "scheduling", "formats", "embedded"),
            *("backends", "server", "frontends", "lab", "build_scripts"),
        }
    ),
    "command": frozenset({"cli"}),  # compllm/__main__.py
}
FREE = "build_scripts"  # imports what it likes
FOLDERS = RULES.keys() - {"vocabulary", "path", "connect", "package", "command"} | {FREE}


@dataclass(frozen=True)
class Import:
    """One imported module, and where it is imported."""

    importer: str  # dotted, without the package's name; "" is the package itself
    imported: str
    file: Path
    line: int


def module_files(package: Path, triton_repo: Path | None = None) -> dict[str, Path]:
    """The package's modules, and the Triton models, which stand in the room `frontends`."""
    files = {}
    for file in sorted([*package.rglob("*.py"), *(package / FREE).rglob("*.py")]):  # that is a link
        parts = file.relative_to(package).with_suffix("").parts
        if not {"triton_repo", "engines", "__pycache__"}.intersection(parts):
            files[".".join(part for part in parts if part != "__init__")] = file
    for file in sorted(triton_repo.glob("*/1/model.py")) if triton_repo else ():
        files[f"frontends.{file.parents[1].name}"] = file
    return files


def imports(module: str, file: Path, modules: Mapping[str, Path]) -> Iterator[Import]:
    """All of a file: in functions and under TYPE_CHECKING, too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: write the import with its full path"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "compllm":
                yield Import(module, _module_of(rest, modules), file, node.lineno)


def _module_of(name: str, modules: Mapping[str, Path]) -> str:
    """`backend.Backend` is of the module `backend`."""
    while name not in modules and name != "_core":
        name = name.rpartition(".")[0]
    return name


def room_of(module: str) -> str:
    """Raises KeyError for a module that no rule knows."""
    head, _, rest = module.partition(".")
    if not head:
        return "package"
    if head in FOLDERS:
        return head
    if not rest:
        for room, names in (("vocabulary", VOCABULARY), ("path", PATH)):
            if head in names:
                return room
        if head in ("connect", "__main__"):
            return "command" if head == "__main__" else head
    raise KeyError(module)


def broken_rule(each: Import) -> str | None:
    """The rule that forbids the import, in words."""
    try:
        ours, theirs = room_of(each.importer), room_of(each.imported)
    except KeyError as error:
        return f"{error.args[0]} stands in no room: name it in tests/test_rooms.py"
    if ours == FREE:
        return None
    if each.importer in ALONE:
        return f"{each.importer} imports nothing of ours, and here {each.imported}"
    if theirs in (ours, "vocabulary"):
        return None
    allowed = RULES[ours]
    if theirs in allowed or any(_is_within(each.imported, name) for name in allowed):
        return None
    listed = ", ".join(sorted(allowed)) or "nothing else"
    return f"{ours} imports the vocabulary and {listed}, and here {each.imported} of {theirs}"


def _is_within(module: str, name: str) -> bool:
    return "." in name and f"{module}.".startswith(f"{name}.")


def broken_rules(found: list[Import]) -> list[str]:
    return [
        f"{each.file}:{each.line}: {rule}"
        for each in found
        if (rule := broken_rule(each)) is not None
    ]


def circles(edges: Iterator[tuple[str, str]]) -> list[list[str]]:
    """Groups of nodes that reach each other; a node's edge to itself is none."""
    graph = nx.DiGraph((one, other) for one, other in edges if one != other)
    return [sorted(group) for group in nx.strongly_connected_components(graph) if len(group) > 1]


def all_imports(files: Mapping[str, Path]) -> list[Import]:
    return [each for module, file in files.items() for each in imports(module, file, files)]


@pytest.fixture(scope="module")
def found() -> list[Import]:
    return all_imports(module_files(PACKAGE, ROOT / "triton_repo"))


def test_each_import_is_allowed_by_a_rule(found: list[Import]) -> None:
    assert broken_rules(found) == []


def test_each_module_stands_in_a_room() -> None:
    rooms = {room_of(module) for module in module_files(PACKAGE, ROOT / "triton_repo")}
    assert rooms == RULES.keys() | {FREE}


def test_rules_name_what_exists() -> None:
    files = module_files(PACKAGE)
    assert (VOCABULARY - {"_core"}) | PATH <= files.keys()
    assert files.keys() >= FOLDERS
    folders = {each.name for each in PACKAGE.iterdir() if (each / "__init__.py").is_file()}
    assert folders == FOLDERS


def test_no_two_files_import_each_other(found: list[Import]) -> None:
    assert circles((each.importer, each.imported) for each in found) == []


def test_no_two_rooms_import_each_other(found: list[Import]) -> None:
    named = ((room_of(each.importer), room_of(each.imported)) for each in found)
    assert circles(edge for edge in named if FREE not in edge) == []


@pytest.mark.parametrize(
    ("importer", "text", "rule"),
    [
        ("routing/route.py", "from compllm.backend import Backend", ""),
        ("routing/route.py", "from compllm import backend", ""),
        ("routing/embed.py", "from compllm.embedded import matmul_offload", ""),
        ("routing/embed.py", "from compllm.embedded.ops import Arena", "embedded.ops of embedded"),
        ("types.py", "from compllm.errors import CompllmError", "types imports nothing of ours"),
        ("execute.py", "def f():\n    import compllm.backends.triton", "backends.triton of"),
        ("lab/replay/runner.py", "from compllm.cli import view", "cli.view of cli"),
        ("server/state.py", "if TYPE_CHECKING:\n    import compllm.execute", "execute of path"),
        ("cli/app.py", "from compllm.build_scripts.fetch_base import ensure_base", ""),
        ("frontends/web.py", "from compllm.build_scripts import fetch_base", "build_scripts."),
        ("newcomer.py", "from compllm.types import Query", "newcomer stands in no room"),
        ("build_scripts/train.py", "from compllm.cli.view import show", ""),
    ],
)
def test_a_broken_rule_is_named_with_file_and_line(
    tmp_path: Path, importer: str, text: str, rule: str
) -> None:
    for name in (
        *("types.py", "errors.py", "backend.py", "execute.py", "embedded/matmul_offload.py"),
        *("embedded/ops.py", "backends/triton.py", "cli/view.py", "build_scripts/fetch_base.py"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    file = tmp_path / importer
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    broken = broken_rules(all_imports(module_files(tmp_path)))
    if not rule:
        assert broken == []
        return
    (line,) = broken
    assert line.startswith(f"{file}:{text.count(chr(10)) + 1}: ")
    assert rule in line


def test_a_circle_is_found() -> None:
    assert circles(iter([("a", "b"), ("b", "c"), ("c", "a"), ("c", "d"), ("d", "d")])) == [
        ["a", "b", "c"]
    ]
