"""The small engine of `tests/conftest.py`, behind a real tritonserver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from comp_llm_client import MAX_TOKENS
from helpers import bare_catalogue, own_home

from compllm.server import triton_server
from compllm.server.triton_state import ServerInfo


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
