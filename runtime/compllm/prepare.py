"""Makes what the embedded server needs and is not there yet: base model, encoder, engine.

    python -m compllm.prepare

`compllm up` runs it first. Each step returns at once when its result is there, tells its progress
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
    update_adapters,
)
from compllm.build_scripts.convert_encoder import ensure_ir
from compllm.build_scripts.fetch_base import ensure_base, ensure_encoder
from compllm.build_scripts.manifest import weights_sha256
from compllm.build_scripts.staging import run_script
from compllm.embedded.manifest import Manifest
from compllm.errors import EngineError


def prepare() -> None:
    """Fetch and build what is missing. Raises ConfigError, EngineError, OSError."""
    ensure_ir(ensure_encoder())
    ensure_engine(ensure_base(), paths.engine_dir(), default_adapters())


def ensure_engine(base: Path, out: Path, shipped: tuple[AdapterSource, ...]) -> Manifest:
    """The engine of this base with at least the shipped adapters.

    One that is there keeps its dtype and the adapters that the user added. Raises EngineError where
    it has some and is of another base: to build it anew would lose them.
    """
    try:
        there = Manifest.read(out)
    except EngineError:
        return build_engine(base, shipped, out)
    own = {entry.name for entry in there.adapters} - {source.name for source in shipped}
    if not own:
        return build_engine(base, shipped, out, there.dtype)
    there.verify(out, base_sha256=weights_sha256(base))
    return update_adapters(out, shipped)


if __name__ == "__main__":
    sys.exit(run_script(prepare))
