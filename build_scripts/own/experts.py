"""Add an expert to a project, or remove one: as a whole or not at all.

`plan_add` and `plan_remove` check everything and fit the router; nothing is written. `apply`
writes: the adapter into the project's folder, the router's file, the engine's adapter,
compllm.toml. A running server of the project then loads its catalogue again. A step that fails
takes back those before it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from compllm import paths
from compllm.build_scripts.build_openvino import AdapterSource, update_adapters
from compllm.build_scripts.fetch_base import ensure_base
from compllm.build_scripts.manifest import weights_sha256
from compllm.build_scripts.own.examples import check_contradictions
from compllm.build_scripts.own.project import NewExpert, Project
from compllm.build_scripts.own.router import Refit, refit
from compllm.build_scripts.staging import exclusive, staged_directory
from compllm.catalogue import Catalogue, Endpoint, check_expert_name
from compllm.embedded.options import ExecutorOptions
from compllm.errors import ArtefactError, ConfigError
from compllm.formats.adapters import WEIGHTS_FILE, Adapter
from compllm.formats.checkpoint import validate_checkpoint
from compllm.formats.manifest import Manifest
from compllm.formats.shape import BaseShape
from compllm.routing.embed import SentenceEncoder
from compllm.server import triton_server
from compllm.server.reload import reload_face
from compllm.types import Expert

_FILES = ("adapter_config.json", WEIGHTS_FILE)
_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Wish:
    """The expert that is asked for."""

    name: str
    adapter: Path | None  # a PEFT directory; None: an endpoint answers
    domain: str
    examples: tuple[str, ...]
    system: str = ""
    is_same_base: bool = False
    endpoint: Endpoint | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be done to a project, with all checks done."""

    project: Project
    name: str
    refit: Refit
    added: Wish | None = None  # None: the expert is removed
    adapter: Adapter | None = None  # of what is added


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """No other process changes a project of this user meanwhile."""
    with exclusive(paths.home_dir() / "projects"):
        yield


def check_new(catalogue: Catalogue, name: str) -> None:
    """Raises ConfigError for a name that cannot be an expert's, or that one has."""
    check_expert_name(name)
    names = {expert.name for expert in catalogue.experts}
    names |= {adapter.name for adapter in catalogue.adapters}
    if name in names:
        raise ConfigError(
            f"{catalogue.path} has {name!r} already: take another name, or remove it first with "
            f"`compllm expert remove {name}`"
        )


def read_adapter(wish: Wish) -> Adapter | None:
    """The adapter, checked against the base in use. Raises ArtefactError."""
    if wish.adapter is None:
        return None
    try:
        return AdapterSource(wish.adapter, wish.name, wish.is_same_base).read(shape_in_use())
    except ArtefactError as error:
        if "made for" not in str(error):
            raise
        reason = str(error).partition(". If they are")[0]
        raise ArtefactError(
            f"{reason}: choose that base with `compllm base use`, or, where it has the same "
            "weights, add --same-base"
        ) from error


def shape_in_use() -> BaseShape:
    """Of the base in use, with its weights' hash. Raises ArtefactError, ConfigError."""
    base = ensure_base()
    return replace(validate_checkpoint(base), sha256=weights_sha256(base))


def plan_add(project: Project, wish: Wish, encoder: SentenceEncoder) -> Change:
    """Raises ConfigError, and ArtefactError for an adapter that cannot be served."""
    before = project.catalogue
    check_new(before, wish.name)
    check_contradictions(before, wish.examples)
    adapter = read_adapter(wish)
    expert = Expert(
        wish.name,
        wish.domain,
        wish.system,
        wish.endpoint.key if wish.endpoint else before.base.model,
        wish.name if adapter else None,
        adapter.task_id if adapter else None,
    )
    after = replace(
        before,
        experts=(*before.experts, expert),
        examples=(*before.examples, wish.examples),
    )
    return Change(project, wish.name, refit(before, after, encoder), wish, adapter)


def plan_remove(project: Project, name: str, encoder: SentenceEncoder) -> Change:
    """Raises ConfigError for a name that no expert has."""
    before = project.catalogue
    if name == before.base.name:
        raise ConfigError("the base is no expert that can be removed")
    gone = before.expert(name)
    kept = [
        (expert, texts)
        for expert, texts in zip(before.experts, before.examples, strict=True)
        if expert is not gone
    ]
    after = replace(
        before,
        experts=tuple(expert for expert, _ in kept),
        examples=tuple(texts for _, texts in kept),
    )
    return Change(project, name, refit(before, after, encoder))


def apply(change: Change) -> str:
    """Do it; returns one sentence on what the server serves now. What fails leaves nothing."""
    project, wish, adapter = change.project, change.added, change.adapter
    old_head = project.catalogue.router.head
    with ExitStack() as undo:
        if wish is not None and adapter is not None:
            _copy_adapter(wish, adapter, project.adapter_dir(change.name), undo)
        head = change.refit.write(project.folder)
        new_head = project.folder / head if head and ":" not in head else None
        if new_head is not None and new_head != old_head:
            undo.callback(new_head.unlink, missing_ok=True)
        project.set_head(head)
        if wish is not None:
            _update_engine(wish, undo)
            project.add(
                NewExpert(
                    wish.name,
                    wish.domain,
                    adapter.task_id if adapter else None,
                    wish.examples,
                    wish.system,
                    wish.is_same_base,
                    wish.endpoint,
                )
            )
        else:
            project.remove(change.name)
        undo.callback(project.restore)
        after = project.save()
        outcome = make_live(project, adapter.rank if adapter else 0)
        undo.pop_all()
    if change.added is None:
        _clear_adapter(project.adapter_dir(change.name), after)
    if old_head is not None and old_head != new_head and old_head.parent == project.folder:
        old_head.unlink(missing_ok=True)
    return outcome


def install_role(project: Project, role: str, name: str, source: Path) -> str:
    """Let the project use a trained adapter as its generator or aggregator; returns one sentence on
    what the server serves now. What fails leaves nothing. Raises ConfigError, ArtefactError."""
    with one_at_a_time():
        project = Project(project.path)  # another command may have changed it
        wish = Wish(name, source, "", ())
        adapter = read_adapter(wish)
        assert adapter is not None
        before = project.catalogue.adapter_of_role(role)
        if before is not None and before.name == name:
            return "it is the one that the project has, nothing was changed"
        with ExitStack() as undo:
            _copy_adapter(wish, adapter, project.adapter_dir(name), undo)
            _update_engine(wish, undo)
            project.set_role(role, name, adapter.task_id)
            undo.callback(project.restore)
            after = project.save()
            outcome = make_live(project, adapter.rank)
            undo.pop_all()
        if before is not None:
            _clear_adapter(project.adapter_dir(before.name), after)
        return outcome


def make_live(project: Project, rank: int = 0) -> str:
    """Let the running server serve the project as it is now, where it serves this project.

    rank: of a new adapter; a running engine takes those up to its limit, a new one any.
    Raises ServerError with the reason where Triton refuses; it then serves what it did before.
    """
    server = triton_server.last_started()
    if server is None:
        return "no server runs: `compllm up` serves it"
    is_ours = server.config_file == str(project.path.resolve()) and server.has_face
    if not is_ours or Path(server.engine_dir) != paths.engine_dir().expanduser().resolve():
        of = server.config_file or "its default settings"
        return (
            f"the server that runs has another base or other settings ({of}): `compllm down`, then "
            f"`compllm up` in {project.folder}"
        )
    if rank > ExecutorOptions().max_lora_rank:
        return (
            f"its rank is {rank}, and a running server takes adapters up to "
            f"{ExecutorOptions().max_lora_rank}: `compllm down`, then `compllm up`"
        )
    reload_face(server)
    return "the running server serves it now"


def _copy_adapter(wish: Wish, adapter: Adapter, folder: Path, undo: ExitStack) -> None:
    """With the record of its training, under the name and id that it has here."""
    assert wish.adapter is not None
    if folder.exists():
        raise ConfigError(f"{folder} is there already: remove it, or take another name")
    undo.callback(_remove_if_empty, folder.parent)
    undo.callback(shutil.rmtree, folder, ignore_errors=True)
    with staged_directory(folder) as partial:
        for name in _FILES:
            shutil.copyfile(wish.adapter / name, partial / name)
        if (wish.adapter / _MANIFEST).is_file():
            record = json.loads((wish.adapter / _MANIFEST).read_text(encoding="utf-8"))
            record |= {"name": adapter.name, "lora_task_id": adapter.task_id}
            text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
            (partial / _MANIFEST).write_text(text, encoding="utf-8")


def _engine() -> Manifest | None:
    """The engine of the base in use; None where `compllm up` has still to build it."""
    try:
        manifest = Manifest.read(paths.engine_dir())
    except ArtefactError:
        return None
    return manifest if manifest.base_sha256 == weights_sha256(ensure_base()) else None


def _update_engine(wish: Wish, undo: ExitStack) -> None:
    """A running server takes the weights from the engine's folder."""
    if wish.adapter is not None and _engine() is not None:
        undo.callback(_remove_from_engine, wish.name)
        update_adapters(
            paths.engine_dir(), [AdapterSource(wish.adapter, wish.name, wish.is_same_base)]
        )


def _remove_from_engine(name: str) -> None:
    engine = _engine()
    if engine is not None and any(entry.name == name for entry in engine.adapters):
        update_adapters(paths.engine_dir(), remove=[name])


def _clear_adapter(folder: Path, after: Catalogue) -> None:
    """The project's own copy, and the engine's. One that the catalogue still names stays, and so
    does a shipped one."""
    if folder.is_dir() and all(adapter.path != folder for adapter in after.adapters):
        _remove_from_engine(folder.name)
        shutil.rmtree(folder)
        _remove_if_empty(folder.parent)


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):
        folder.rmdir()
