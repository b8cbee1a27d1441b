"""A tiny engine with three adapters of different ranks and modules."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from engines import make_engine
from executor_parts import ADAPTERS, OPTIONS
from helpers import MakeAdapter

from compllm.embedded.executor import Executor


@pytest.fixture(scope="session")
def adapters(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> dict[str, Path]:
    return {
        name: make_adapter(tiny_checkpoint, name, scale=0.5, **kwargs)
        for name, kwargs in ADAPTERS.items()
    }


@pytest.fixture(scope="session")
def engine_dir(
    tiny_checkpoint: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return make_engine(tiny_checkpoint, tmp_path_factory.mktemp("engine") / "e", "fp16", adapters)


@pytest.fixture(scope="session")
def op_engine(engine_dir: Path) -> Iterator[Executor]:
    engine = Executor(engine_dir, OPTIONS)
    yield engine
    engine.close()
