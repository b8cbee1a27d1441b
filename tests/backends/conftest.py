"""The gRPC client of a loopback server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from loopback import Loopback
from tritonclient.grpc import service_pb2_grpc

from compllm.backends.tokenizer import Tokenizer
from compllm.backends.triton import TritonBackend


@pytest.fixture
async def loopback() -> AsyncIterator[Loopback]:
    loopback = Loopback()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(loopback, loopback.server)
    loopback.url = f"127.0.0.1:{loopback.server.add_insecure_port('127.0.0.1:0')}"
    await loopback.server.start()
    yield loopback
    await loopback.server.stop(None)


@pytest.fixture(scope="session")
def tokenizer(base_dir: Path) -> Tokenizer:
    return Tokenizer.from_dir(base_dir)


@pytest.fixture
async def backend(loopback: Loopback, tokenizer: Tokenizer) -> AsyncIterator[TritonBackend]:
    backend = TritonBackend(loopback.url, tokenizer)
    yield backend
    await backend.aclose()
