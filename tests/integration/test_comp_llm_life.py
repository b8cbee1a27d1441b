"""Servers with the `comp_llm` model: what starts them, what they refuse, how they stop."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest
import tritonclient.grpc.aio as triton_aio
from comp_llm_client import (
    QUESTION,
    WAIT_S,
    generate,
    num_active,
    stream,
)

from compllm.errors import ServerError
from compllm.server import triton_process, triton_server
from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton


def test_up_serves_it_and_a_server_without_it_is_not_taken_for_one(
    engine_dir: Path, home: Path
) -> None:
    try:
        triton_server.up(engine_dir)
        with pytest.raises(ServerError, match=r"already running with no model comp_llm"):
            triton_server.up(engine_dir, has_face=True)
        triton_server.down()
        settings = home / "mine.toml"
        settings.write_text("[limits]\nmax_query_chars = 40\n")
        info = triton_server.up(engine_dir, has_face=True, http_port=0, config=settings)
        assert triton_server.up(engine_dir) == triton_server.status() == info
        assert generate(info, text_input=QUESTION[:40])["text_output"]
        with pytest.raises(urllib.error.HTTPError) as refused:
            generate(info, text_input=QUESTION)
        refused.value.close()
        with pytest.raises(ServerError, match="already running with the settings"):
            triton_server.up(engine_dir, has_face=True, config=home / "other.toml")
    finally:
        triton_server.down()


def test_missing_encoder_is_named_when_it_starts(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    with pytest.raises(ServerError, match=r"did not start: .*no sentence encoder in"):
        triton_server.up(engine_dir, has_face=True)


async def test_server_stops_under_load(engine_dir: Path, home: Path) -> None:
    with triton_server.running(engine_dir, has_face=True, is_shared=False) as info:
        async with triton_aio.InferenceServerClient(info.grpc_url) as client:
            answers = [asyncio.create_task(stream(client)) for _ in range(8)]
            await asyncio.to_thread(_wait_active, info)
            await asyncio.to_thread(triton_process.stop, info)
            async with asyncio.timeout(WAIT_S):  # no task waits for ever
                await asyncio.gather(*answers, return_exceptions=True)
    assert not psutil.pid_exists(info.server_pid)


def _wait_active(server: ServerInfo) -> None:
    while not num_active(server):
        pass
