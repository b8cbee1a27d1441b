"""The table of errors.py row by row at a real tritonserver, as a gRPC client sees it.

Triton closes a stream with an error's status where the server's owner asks so with a header.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from helpers import bare_catalogue, own_home
from tritonclient.grpc import service_pb2, service_pb2_grpc

from compllm import errors
from compllm.backends.wire import add_array, add_texts
from compllm.errors import Situation
from compllm.server import triton_server
from compllm.server.triton_state import ServerInfo, status_header

pytestmark = pytest.mark.triton

WAIT_S = 60.0
ENGINE, PATH = "tensorrt_llm", "comp_llm"
OPTIONS = {"max_batch_size": 1, "max_queue_size": 1}
TRITON_STATUS = {"INVALID_ARG": "INVALID_ARGUMENT"}  # the others have gRPC's own names


@pytest.fixture(scope="module")
def server(
    engine_dir: Path, encoder_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerInfo]:
    home = tmp_path_factory.mktemp("home")
    with own_home(home, encoder_dir) as patch:
        patch.setenv("COMPLLM_CATALOGUE", str(bare_catalogue(home)))
        with triton_server.running(
            engine_dir, options=OPTIONS, has_face=True, has_http=True, is_shared=False
        ) as info:
            yield info


def _engine_request(number: int, max_tokens: int = 4, task_id: int | None = None) -> Any:
    message = service_pb2.ModelInferRequest(model_name=ENGINE, id=f"r{number}")
    add_array(message, "input_ids", [[1, 2, 3]], np.int32)
    add_array(message, "input_lengths", [[3]], np.int32)
    add_array(message, "request_output_len", [[max_tokens]], np.int32)
    if task_id is not None:
        add_array(message, "lora_task_id", [[task_id]], np.uint64)
    return message


def _question(text: str, deadline_ms: int | None = None) -> Any:
    message = service_pb2.ModelInferRequest(model_name=PATH, id="q")
    add_texts(message, "text_input", [text], (1, 1))
    if deadline_ms is not None:
        add_array(message, "deadline_ms", [[deadline_ms]], np.int32)
    return message


def _status(server: ServerInfo, messages: Iterable[Any]) -> tuple[str, str]:
    """Name of the status that ends the stream, and its text."""
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        metadata = ((status_header(server.admin_key), "true"),)
        try:
            for _ in stub.ModelStreamInfer(iter(messages), timeout=WAIT_S, metadata=metadata):
                pass
        except grpc.RpcError as error:
            return error.code().name, str(error.details())
    return "OK", ""


@contextmanager
def _full_queue(server: ServerInfo) -> Iterator[None]:
    """More long requests than the engine runs and holds, on a stream of their own.

    That stream stays open at an error: Triton ends one with the header at its first, and
    Triton 24.10 dies when another response comes for it.
    """
    messages = [_engine_request(number, max_tokens=200) for number in range(2, 6)]
    with grpc.insecure_channel(server.grpc_url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        call = stub.ModelStreamInfer(iter(messages), timeout=WAIT_S)
        refused = next(response for response in call if response.error_message)
        assert "the engine's queue is full (1 requests)" in refused.error_message
        yield
        # To its end, so that no response comes for a stream that is gone. Triton 24.10 may die all
        # the same of a stream that ended with a status (docs/TRITON.md).
        with suppress(grpc.RpcError):
            for _ in call:
                pass


@pytest.mark.parametrize(
    ("message", "situation", "said"),
    [
        (_engine_request(0, max_tokens=0), errors.INVALID, "max_tokens is 0"),
        (_engine_request(0, task_id=77), errors.NOT_FOUND, "LoRA task 77 not found in cache"),
        (_question(" "), errors.INVALID, "the question is empty"),
        (_question("What is iron?", 1), errors.TIMED_OUT, "DEADLINE_EXCEEDED: the deadline of"),
    ],
    ids=["bad value", "unknown adapter", "empty question", "deadline"],
)
def test_a_stream_ends_with_the_status_of_the_table(
    server: ServerInfo, message: Any, situation: Situation, said: str
) -> None:
    _check(server, message, situation, said)


def test_a_full_queue_is_unavailable_to_any_client(server: ServerInfo) -> None:
    with _full_queue(server):
        _check(server, _engine_request(1), errors.UNAVAILABLE, "the engine's queue is full")


def _check(server: ServerInfo, message: Any, situation: Situation, said: str) -> None:
    status, text = _status(server, [message])
    code = situation.triton_code
    assert (status, said in text) == (TRITON_STATUS.get(code, code), True), text
