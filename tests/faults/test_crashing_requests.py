"""11. One request ends tritonserver (SIGSEGV), and with it the queries of all users.

Triton 24.10 itself does not survive some of them over HTTP, which is closed unless a port is asked
for. The supervisor starts the server again: what counts then is the time until the next right
answer.
"""

from __future__ import annotations

import contextlib
import http.client
import signal
import stat
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import grpc
import psutil
import pytest
from core_client import Refused, check_right_within, infer, message, responses
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from compllm import paths
from compllm.server import triton_server
from compllm.server.health import models
from compllm.server.triton_state import HOST, STATUS_HEADER, ServerInfo

pytestmark = pytest.mark.triton

WAIT_S = 60.0
GENERATE = "/v2/models/comp_llm/generate"


def post(server: ServerInfo, body: bytes | Iterator[bytes]) -> None:
    """A POST whose end does not matter: the server may die of it."""
    connection = http.client.HTTPConnection(HOST, server.http_port, timeout=WAIT_S)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", GENERATE, body, encode_chunked=not isinstance(body, bytes))
        connection.getresponse().read()


def check_again(server: ServerInfo, expected: list[int], again_s: float) -> None:
    """There is a right answer soon, by the server or by the one that took its place."""
    check_right_within(server, expected, again_s)
    again = triton_server.status(wait_s=WAIT_S)
    assert again is not None
    assert again.pid == server.pid


def test_after_a_body_of_nested_brackets_the_next_answer_comes_soon(
    own_server: ServerInfo, again_s: float
) -> None:
    expected = infer(own_server)
    post(own_server, b'{"text_input": ' + b"[" * 50_000)
    check_again(own_server, expected, again_s)


@pytest.mark.long
def test_after_a_body_of_many_chunks_the_next_answer_comes_soon(
    own_server: ServerInfo, again_s: float
) -> None:
    """CVE-2025-23310, which the wheel's Triton has."""
    expected = infer(own_server)
    post(own_server, (b" " for _ in range(600_000)))
    check_again(own_server, expected, again_s)


@pytest.mark.long
@pytest.mark.parametrize("name", ["tensorrt_llm", "comp_llm"])
@pytest.mark.parametrize("seconds", [0.5, 1.0, 2.0])
def test_after_a_pause_of_a_models_process_the_next_answer_comes_soon(
    own_server: ServerInfo, again_s: float, name: str, seconds: float
) -> None:
    expected = infer(own_server)
    children = psutil.Process(own_server.server_pid).children()
    (stub,) = (each for each in children if f"/{name}/" in " ".join(each.cmdline()))
    stub.send_signal(signal.SIGSTOP)
    end_s = time.monotonic() + seconds
    try:
        with contextlib.suppress(Refused, grpc.RpcError):
            infer(own_server)  # it arrives during the pause
        time.sleep(max(0.0, end_s - time.monotonic()))
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            stub.send_signal(signal.SIGCONT)
    check_again(own_server, expected, again_s)


def test_a_stream_that_asks_for_a_status_does_not_end_the_server(own_server: ServerInfo) -> None:
    """A good request, then one that is refused, with the header that Triton 24.10 does not survive.
    No client's header of that name reaches it."""
    expected = infer(own_server)
    for _ in range(7):
        pair = [message(max_tokens=200), message(max_tokens=0)]
        found = responses(own_server, pair, ((STATUS_HEADER, "true"),))
        (refused,) = filter(None, (each.error_message for each in found))
        assert "max_tokens is 0" in refused
    assert infer(own_server) == expected
    again = triton_server.status(wait_s=WAIT_S)
    assert again is not None
    assert again.server_pid == own_server.server_pid


def test_shared_memory_and_models_are_for_the_owner_alone(own_server: ServerInfo) -> None:
    """Any client could register the server's own memory and have outputs written into it."""
    info = own_server
    with InferenceServerClient(info.grpc_url) as client:
        for call in (
            client.get_system_shared_memory_status,
            client.get_model_repository_index,
            client.get_log_settings,
            client.get_trace_settings,
        ):
            with pytest.raises(InferenceServerException, match="compllm-admin"):
                call()
        assert client.get_model_config("tensorrt_llm")
    for path in ("/v2/systemsharedmemory/status", "/v2/logging", "/v2/trace/setting"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(info.http_url + path)
        with caught.value as refused:
            assert refused.code == 403
    assert [each["is_ready"] for each in models(info)] == [True, True]
    assert stat.S_IMODE((paths.run_dir() / "server.json").stat().st_mode) == 0o600
    with urllib.request.urlopen(info.http_url + "/v2") as told:
        assert info.shm_prefix not in told.read().decode()
