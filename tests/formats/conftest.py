"""A PEFT directory with every module of a tiny base."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import MakeAdapter
from peft_parts import ALL

from compllm.formats.checkpoint import validate_checkpoint
from compllm.formats.shape import BaseShape


@pytest.fixture(scope="session")
def base(tiny_checkpoint: Path) -> BaseShape:
    return validate_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="session")
def plain(tiny_checkpoint: Path, make_adapter: MakeAdapter) -> Path:
    return make_adapter(tiny_checkpoint, "plain", rank=4, alpha=12, modules=ALL)


@pytest.fixture
def copy(plain: Path, tmp_path: Path) -> Path:
    """A copy of `plain` that a test may damage."""
    return Path(shutil.copytree(plain, tmp_path / "plain"))
