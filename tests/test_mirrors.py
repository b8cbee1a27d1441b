"""Every module of the product has a test module, and every test has a name that can be read.

The mirror of `routing/route.py` is `tests/routing/test_route.py`. Deeper folders may stand in the
name (`test_replay_records.py`), and the command line's may end in `_cli`. `COVERED_BY` names the
test of each module without a mirror.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

import networkx as nx
import pytest
from test_rooms import PACKAGE, imports, module_files

TESTS = Path(__file__).parent
MAX_NAME = 80  # characters
BUILD = "build_scripts"

# Test module -> the modules that it covers though it does not have their name.
COVERED_BY: Mapping[str, tuple[str, ...]] = {
    "test_served": ("connect",),
    "test_pipeline": ("query_run", "types"),
    "test_testing": ("backend",),
    "backends/test_openai": ("backends.openai_http",),
    "backends/test_llmapi": ("backends.llmapi_wire",),
    "backends/test_triton": (*("backends.channel", "backends.client_stats", "backends.select"),),
    "cli/test_expert_cli": (
        *("cli.base", "cli.init", "cli.expert_add", "cli.expert_change", "cli.expert_try"),
    ),
    "cli/test_eval_set": ("cli.known_questions",),
    "cli/test_cli": ("cli.app", "cli.console", "cli.server", "cli.shared"),
    "cli/test_plan_cli": ("cli.question_file",),
    "cli/test_view": ("printable",),
    "embedded/test_executor": (
        *("embedded.counters", "embedded.lora", "embedded.orders", "embedded.request"),
    ),
    "embedded/test_executor_faults": ("embedded.masking",),
    "embedded/test_network": ("embedded.runner",),
    "embedded/test_scheduler": ("embedded.sequence",),
    "formats/test_adapters": ("formats.shape",),
    "formats/test_checkpoint": ("formats.json_files",),
    "frontends/test_core_metrics": ("frontends.triton.metrics",),
    "lab/test_explain": ("lab.explain.record", "lab.explain.report", "lab.explain.schedule"),
    "lab/test_explain_pictures": ("lab.explain.gantt", "lab.explain.perfetto"),
    "lab/test_simulate": (
        *("lab.engine_profile", "lab.simulate.fit", "lab.simulate.load", "lab.simulate.workload"),
    ),
    "integration/test_replay": (
        *("lab.replay.counters", "lab.replay.drive", "lab.replay.runner", "lab.replay.session"),
    ),
    "routing/test_routers": ("routing.archive", "routing.artefact", "routing.heads"),
    "server/test_server_log": ("server.supervisor",),
    "server/test_triton_server": (
        *("server.health", "server.triton_files", "server.triton_process", "server.triton_state"),
    ),
    "build_scripts/test_build_openvino": (f"{BUILD}.manifest",),
    "build_scripts/test_own_roles": (f"{BUILD}.train_role",),
    "build_scripts/test_datasets_bank": (
        *(f"{BUILD}.datasets.{name}" for name in ("biology", "mathematics", "kinds", "wordings")),
    ),
    "build_scripts/test_datasets_composites": (f"{BUILD}.datasets.expressions",),
    "build_scripts/test_datasets_frames": (
        *(f"{BUILD}.datasets.{name}" for name in ("generators", "invented")),
    ),
    "build_scripts/test_everyday": (
        *(f"{BUILD}.datasets.{name}" for name in ("chains", "leaves", "several")),
    ),
    "build_scripts/test_lines": (*(f"{BUILD}.datasets.{name}" for name in ("forms", "rows")),),
    "build_scripts/test_make_datasets": (
        *(f"{BUILD}.datasets.{name}" for name in ("aggregators", "experts", "sets", "tokens")),
    ),
    "build_scripts/test_make_triton_repo": (
        *(f"{BUILD}.repository.{name}" for name in ("launch", "models", "warm_up")),
    ),
    "build_scripts/test_operations": (f"{BUILD}.datasets.sums",),
    "build_scripts/test_own_facts": (f"{BUILD}.own.examples",),
    "build_scripts/test_refresh": (
        *(f"{BUILD}.datasets.{name}" for name in ("chemistry", "heavy")),
    ),
    "build_scripts/test_repository_contract": (
        *(f"{BUILD}.repository.{name}" for name in ("core", "make_upstream", "upstream")),
    ),
    "build_scripts/test_train_confidence": (
        *(f"{BUILD}.calibration.{name}" for name in ("examples", "fit", "questions")),
    ),
    "build_scripts/test_train_gate": (
        *(f"{BUILD}.{name}" for name in ("gating.fit", "gating.questions", "json_lines")),
    ),
    "build_scripts/test_train_lora": (
        *(f"{BUILD}.training.{name}" for name in ("agreement", "options", "sweep")),
        f"{BUILD}.verify_lora",
    ),
    "build_scripts/test_train_router": (
        *(f"{BUILD}.routing.{name}" for name in ("fit", "questions", "thresholds", "vectors")),
    ),
    "build_scripts/test_training_parts": (
        *(f"{BUILD}.training.{name}" for name in ("adapter", "batches", "examples", "kernels")),
        *(f"{BUILD}.training.{name}" for name in ("loop", "packed_model", "packing", "scoring")),
        f"{BUILD}.training.settings",
    ),
    "build_scripts/test_trtllm_flags": (f"{BUILD}.trtllm.commands", f"{BUILD}.trtllm.make_flags"),
    "build_scripts/test_trtllm_plan": (f"{BUILD}.trtllm.rules",),
    "build_scripts/test_trtllm_runner": (f"{BUILD}.trtllm.process",),
    "integration/test_smoke": (
        f"{BUILD}.smoke_triton",
        *(f"{BUILD}.smoke.{n}" for n in ("adapters", "checks", "client", "comp_llm", "life")),
        f"{BUILD}.smoke.reference",
        f"{BUILD}.smoke.tensors",
    ),
}


def mirrors(module: str) -> Iterator[str]:
    """The names that a module's own test may have, without `.py`."""
    folder, *rest = module.split(".") if "." in module else ("", module)
    for start in range(len(rest)):
        name = "_".join(rest[start:])
        yield f"{folder}/test_{name}".removeprefix("/")
        if folder == "cli":
            yield f"{folder}/test_{name}_cli"


def has_mirror(module: str) -> bool:
    return any((TESTS / f"{name}.py").is_file() for name in mirrors(module))


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for file in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield file, node


@pytest.fixture(scope="module")
def modules() -> dict[str, Path]:
    """All but packages themselves and the start of the command line."""
    found = module_files(PACKAGE)
    return {name: file for name, file in found.items() if not file.stem.startswith("__")}


def test_every_module_has_a_test_of_its_name_or_is_in_the_table(modules: dict[str, Path]) -> None:
    covered = set(chain.from_iterable(COVERED_BY.values()))
    assert [name for name in modules if name not in covered and not has_mirror(name)] == []


def test_the_table_names_each_module_once_and_none_with_a_mirror(modules: dict[str, Path]) -> None:
    covered = list(chain.from_iterable(COVERED_BY.values()))
    assert len(covered) == len(set(covered))
    assert [name for name in covered if name not in modules or has_mirror(name)] == []


def test_a_test_of_the_table_reaches_the_modules_that_it_covers() -> None:
    """Through its imports and theirs."""
    files = module_files(PACKAGE)
    tests = {f"tests:{name}": TESTS / f"{name}.py" for name in COVERED_BY}
    graph = nx.DiGraph(
        (each.importer, each.imported)
        for module, file in (files | tests).items()
        for each in imports(module, file, files)
    )
    reached = {name: nx.descendants(graph, f"tests:{name}") for name in COVERED_BY}
    missed = {name: set(each) - reached[name] for name, each in COVERED_BY.items()}
    assert {name: each for name, each in missed.items() if each} == {}


def test_names_of_tests_have_at_most_80_characters() -> None:
    named = [(file, node.name) for file, node in functions() if node.name.startswith("test_")]
    assert [(str(file), name) for file, name in named if len(name) > MAX_NAME] == []
