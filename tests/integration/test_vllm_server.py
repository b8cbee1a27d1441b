"""A real vLLM on this processor, with the shipped adapters: README's questions as over Triton.

vLLM wants an environment of its own: VLLM_PYTHON names its interpreter, and without it this is
skipped. docs/BACKENDS.md says how such an environment is made.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from compllm import CompLLM, paths
from compllm.catalogue import load_catalogue
from compllm.config import load_config
from compllm.server import triton_server
from compllm.types import Answer, Query

PYTHON = os.environ.get("VLLM_PYTHON", "")
START_S = 500.0
# README's; test_shown_questions.py has their answers.
QUESTIONS = (
    "What is the capital of Germany?",
    "What is the atomic number of iron, and how many chromosomes does a human cell have?",
    "What is the symbol of iron, how many codons encode leucine, and what is 4 times 3?",
    "Is the atomic number of oxygen larger than the number of codons for leucine?",
    "Which element's atomic number is the number of codons that encode the amino acid encoded by "
    "the codon C U G?",
)

pytestmark = [
    pytest.mark.triton,
    pytest.mark.long,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not shutil.which(PYTHON), reason="$VLLM_PYTHON names no interpreter"),
]


@pytest.fixture(scope="module")
def url(base_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    adapters = [f"{each.name}={each.path}" for each in load_catalogue().adapters]
    command = [
        PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", str(base_dir),
        "--served-model-name", "base", "--host", "127.0.0.1", "--port", str(port),
        "--max-model-len", "2048", "--enable-lora", "--max-loras", str(len(adapters)),
        "--max-lora-rank", "16", "--lora-modules", *adapters,
    ]  # fmt: skip
    log = tmp_path_factory.mktemp("vllm") / "log"
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    with log.open("w") as output:
        server = subprocess.Popen(command, env=os.environ | settings, stdout=output, stderr=output)
    try:
        address = f"http://127.0.0.1:{port}"
        _wait(f"{address}/health", server, log)
        yield address
    finally:
        server.terminate()
        server.wait(60)


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    end_s = time.monotonic() + START_S
    while time.monotonic() < end_s:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1.0)
    raise AssertionError(log.read_text()[-3000:])


async def _answers(server_url: str, base_dir: Path) -> list[Answer]:
    config = load_config(
        overrides={
            "server.url": server_url,
            "server.model": "base" if "//" in server_url else "",
            "server.tokenizer": str(base_dir),
        },
        environ={},
    )
    async with await CompLLM.connect(config) as llm:
        return [await llm.ask(Query(text)) for text in QUESTIONS]


async def test_plans_routes_and_answers_are_those_over_triton(url: str, base_dir: Path) -> None:
    with triton_server.running(paths.engine_dir()) as info:
        ours = await _answers(info.grpc_url, base_dir)
    theirs = await _answers(url, base_dir)
    for ask, own, other in zip(QUESTIONS, ours, theirs, strict=True):
        assert [each.text for each in other.plan.sub_queries] == [
            each.text for each in own.plan.sub_queries
        ], ask
        assert [each.expert for each in other.nodes] == [each.expert for each in own.nodes], ask
        assert other.text == own.text, ask
