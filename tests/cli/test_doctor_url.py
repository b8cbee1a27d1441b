"""doctor --url: what an OpenAI-compatible server can do, or why it cannot be used."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from openai_loopback import OpenAILoopback

from compllm.cli.doctor_url import examine_url
from compllm.config import load_config
from compllm.served import catalogue_of


def test_a_server_that_is_away_is_one_missing_check(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPLLM_SERVER_TOKENIZER", str(base_dir))
    monkeypatch.setenv("COMPLLM_SERVER_READY_TIMEOUT_S", "0.1")
    (check,) = examine_url("http://127.0.0.1:1")
    assert check.status == "missing"
    assert "no answer from http://127.0.0.1:1" in check.found


def test_a_missing_tokenizer_names_the_setting() -> None:
    (check,) = examine_url("http://127.0.0.1:1")
    assert "server.tokenizer" in check.found


def test_a_triton_address_is_no_http_url() -> None:
    (check,) = examine_url("127.0.0.1:8001")
    assert check.status == "missing"
    assert "http://host:port" in check.remedy


async def test_each_capability_is_a_row(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLLM_SERVER_TOKENIZER", str(base_dir))
    server = OpenAILoopback()
    server.models += [each.name for each in catalogue_of(load_config()).adapters]
    stop = await server.start()
    checks = await asyncio.to_thread(examine_url, server.url)
    await stop()
    found = {check.name: check.found for check in checks}
    assert found["server"] == "vllm"
    assert found["prompt"] == "token ids"
    assert "chemistry" in found["adapters"]
    assert {check.status for check in checks} == {"ok"}
