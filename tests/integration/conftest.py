"""A small real engine with two adapters, behind a real tritonserver."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from comp_llm_client import MAX_TOKENS
from helpers import bare_catalogue, own_home

from compllm.build_scripts.build_openvino import AdapterSource, build_engine
from compllm.formats.manifest import Manifest
from compllm.server import triton_server
from compllm.server.triton_state import ServerInfo


@pytest.fixture(scope="session")
def engine_dir(
    tiny_checkpoint: Path,
    make_adapter: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Adapters `chemistry` and `biology` on a tiny Llama with the real base's tokenizer."""
    out = tmp_path_factory.mktemp("engines") / "tiny"
    sources = [
        AdapterSource(make_adapter(tiny_checkpoint, name, seed=seed, scale=1.0), name)
        for seed, name in enumerate(("chemistry", "biology"))
    ]
    # fp16 weights are computed with in float32: the same tokens alone and in any batch.
    build_engine(tiny_checkpoint, sources, out, "fp16")
    return out


@pytest.fixture(scope="session")
def task_ids(engine_dir: Path) -> dict[str, int]:
    """lora_task_id by adapter name."""
    return {entry.name: entry.task_id for entry in Manifest.read(engine_dir).adapters}


@pytest.fixture(scope="session")
def server(engine_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerInfo]:
    """One server for all tests that leave it well. Tests that kill start their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPLLM_HOME", str(tmp_path_factory.mktemp("home")))
        with triton_server.running(engine_dir, has_http=True, is_shared=False) as info:
            patch.undo()
            yield info


@pytest.fixture(scope="module")
def home(
    engine_dir: Path, encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A user of their own, with the fetched encoder. After `engine_dir`, which reads the real one's
    cache."""
    home = tmp_path_factory.mktemp("home")
    with own_home(home, encoder_dir) as patch:
        patch.setenv("COMPLLM_CATALOGUE", str(bare_catalogue(home)))
        patch.setenv("COMPLLM_LIMITS_MAX_NODE_TOKENS", "16")
        patch.setenv("COMPLLM_LIMITS_MAX_ANSWER_TOKENS", str(MAX_TOKENS))
        yield home
