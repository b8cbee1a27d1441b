"""Engines of TensorRT-LLM for make_triton_repo.py, and an adapter that was trained for a moment."""

from __future__ import annotations

from pathlib import Path

import pytest
from repositories import (
    ADAPTERS,
    engine_entry,
    expert_entries,
    write_catalogue,
    write_engines,
)
from training_data import SETTINGS, write_dataset

from compllm.build_scripts.make_triton_repo import Inputs
from compllm.build_scripts.train_lora import train_adapter
from compllm.build_scripts.trtllm.record import TrtManifest
from compllm.formats.checkpoint import validate_checkpoint


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    return tmp_path / "engines"


@pytest.fixture
def inputs(engines: Path, tmp_path: Path) -> Inputs:
    return Inputs(engines, write_catalogue(tmp_path))


@pytest.fixture
def shared(engines: Path, tiny_checkpoint: Path) -> TrtManifest:
    """One engine with the LoRA plug-in on the first GPU."""
    entry = engine_entry(validate_checkpoint(tiny_checkpoint), max_lora_rank=16)
    return write_engines(engines, tiny_checkpoint, [entry], ADAPTERS)


@pytest.fixture
def crowded(engines: Path, tiny_checkpoint: Path) -> TrtManifest:
    """An engine per expert, all three on one GPU."""
    entries = expert_entries(tiny_checkpoint, (0,), (0,), (0,))
    return write_engines(engines, tiny_checkpoint, entries)


@pytest.fixture
def spread(engines: Path, tiny_checkpoint: Path) -> TrtManifest:
    """An engine per expert, on GPUs of their own."""
    entries = expert_entries(tiny_checkpoint, (0,), (1,), (2,))
    return write_engines(engines, tiny_checkpoint, entries)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "chemistry")


@pytest.fixture(scope="session")
def trained(dataset: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter that was trained for a moment."""
    folder = tmp_path_factory.mktemp("trained")
    manifest = train_adapter(
        [dataset], folder / "chem", SETTINGS, checkpoint=tiny_checkpoint, work=folder / "work"
    )
    assert manifest is not None
    return folder / "chem"
