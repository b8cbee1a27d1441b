"""Makes what the embedded server needs and is not there yet: base model, encoder, engine with the
catalogue's adapters.

    python -m compllm.cli.prepare

`compllm up` runs it first. Each step returns at once when its result is there, reports its progress
on stderr and leaves nothing half-made when it is interrupted.
"""

from __future__ import annotations

import sys
from pathlib import Path

from compllm import paths
from compllm.build_scripts.build_openvino import (
    AdapterSource,
    build_engine,
    default_adapters,
    shipped_folder,
    update_adapters,
)
from compllm.build_scripts.convert_encoder import ensure_ir
from compllm.build_scripts.fetch_base import ensure_base, ensure_encoder
from compllm.build_scripts.manifest import weights_sha256
from compllm.build_scripts.staging import run_script, say
from compllm.catalogue import Catalogue, load_catalogue
from compllm.errors import ArtefactError, ConfigError
from compllm.formats.manifest import Manifest
from compllm.formats.tokenizer_files import check_template
from compllm.storage import require_writable


def prepare(catalogue: Catalogue | None = None) -> None:
    """Fetch and build what is missing; None is the shipped catalogue. Raises ConfigError,
    ArtefactError, OSError."""
    catalogue = catalogue or load_catalogue()
    require_writable(paths.home_dir())
    ensure_ir(ensure_encoder())
    base = ensure_base()
    check_template(base, catalogue.template)
    manifest = ensure_engine(base, paths.engine_dir(), adapter_sources(catalogue, base))
    check_ids(catalogue, manifest)


def adapter_sources(catalogue: Catalogue, base: Path) -> tuple[AdapterSource, ...]:
    """The shipped adapters, where they are for this base, and those that the catalogue has folders
    of; its own win where they have a name in common."""
    sources = {source.name: source for source in default_adapters(base)}
    for each in catalogue.adapters:
        if each.path is None:
            continue
        # A shipped one is there already, unless it is of another base and the user vouches for it.
        if each.is_same_base or each.path.resolve().parent != shipped_folder().resolve():
            sources[each.name] = AdapterSource(each.path, each.name, each.is_same_base)
    return tuple(sources[name] for name in sorted(sources))


def check_ids(catalogue: Catalogue, manifest: Manifest) -> None:
    """The catalogue must name the ids that the engine's adapters have by their content, so that
    nothing cached of an older adapter is met. Raises ConfigError."""
    there = {entry.name: entry.task_id for entry in manifest.adapters}
    for adapter in catalogue.adapters:
        task_id = there.get(adapter.name)
        if task_id is None:
            say(
                f"adapter {adapter.name} of {catalogue.path} is not in the engine: the base answers"
            )
        elif task_id != adapter.id:
            raise ConfigError(
                f"{catalogue.path}: adapters.{adapter.name}: its id is {adapter.id}, that of its "
                f"content is {task_id}: the adapter has changed, name that one (id, or "
                "lora_task_id in the manifest.json beside it)"
            )


def ensure_engine(base: Path, out: Path, shipped: tuple[AdapterSource, ...]) -> Manifest:
    """The engine of this base with at least the shipped adapters.

    One that is there keeps its dtype and the adapters that the user added. Raises ArtefactError
    where it has some and is of another base: to build it anew would lose them.
    """
    try:
        there = Manifest.read(out)
    except ArtefactError:
        return build_engine(base, shipped, out)
    base_sha256 = weights_sha256(base)
    names = {entry.name for entry in there.adapters}
    # Adapters of another base are none of those shipped for this one, whatever their names.
    shipped_here = {source.name for source in shipped if there.base_sha256 == base_sha256}
    if not names - shipped_here:
        return build_engine(base, shipped, out, there.dtype)
    there.verify(out, base_sha256=base_sha256)
    return update_adapters(out, shipped)


if __name__ == "__main__":
    sys.exit(run_script(prepare))
