"""What a server's errors become: texts on the stream, and gRPC's own codes."""

from __future__ import annotations

import grpc
import pytest
from loopback import MISSING

from compllm.backends.stream import AdapterMissing, CacheFull, error_from, error_from_text
from compllm.errors import BackendError, BackendRejected, BackendUnavailable


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Request for unknown model: 'x' is not found", BackendRejected),
        ("unexpected inference input 'X' for model 'tensorrt_llm'", BackendRejected),
        (MISSING, AdapterMissing),
        ("Cache is full. There are no done tasks to evict", CacheFull),
        ("PEFT Cache is full. Could not store taskId=7", CacheFull),
        (
            "Error storing task=7 in PEFT cache -- [TensorRT-LLM][ERROR] Assertion failed: "
            "pageIds.has_value() (/src/cpp/tensorrt_llm/runtime/loraCache.cpp:243)",
            CacheFull,
        ),
        (
            "Assertion failed: Invalid low_rank (64)\n1       0x7f2a /usr/local/cuda/lib64/x.so"
            "\n2  0x7f2b /opt/tritonserver/backends/out of memory.so",
            BackendRejected,
        ),
        ("lora module 5 not enabled (/src/tensorrt_llm/common/cudaUtils.h:42)", BackendRejected),
        ("[TensorRT-LLM][ERROR] CUDA runtime error in cudaMalloc: out of memory", BackendError),
        ("CUDA runtime error in cudaEventSynchronize(ev): an illegal access", BackendError),
        ("Exceeds maximum queue size", BackendUnavailable),
        ("the engine's queue is full (1024 requests): try again later", BackendUnavailable),
        ("Stub process 'tensorrt_llm_0_0' is not healthy.", BackendUnavailable),
        ("the engine is shut down", BackendUnavailable),
        (
            "Request for unknown model: 'tensorrt_llm' has no available versions",
            BackendUnavailable,
        ),
        (
            "Request for unknown model: 'tensorrt_llm' version 1 is not at ready state",
            BackendUnavailable,
        ),
        (
            "Server is stopping, scheduler for model has stopped accepting new inference requests",
            BackendUnavailable,
        ),
        ("the engine failed: out of bounds", BackendError),
        ("Executor failed: Encountered an error in forwardAsync function", BackendError),
    ],
)
def test_errors_on_the_stream_become_ours(text: str, kind: type[BackendError]) -> None:
    error = error_from_text(text)
    assert text in str(error)
    assert isinstance(error, kind)
    assert isinstance(error, BackendRejected | BackendUnavailable) == (kind is not BackendError)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.UNAVAILABLE, BackendUnavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, BackendUnavailable),
        (grpc.StatusCode.INVALID_ARGUMENT, BackendRejected),
        (grpc.StatusCode.UNIMPLEMENTED, BackendRejected),
        (grpc.StatusCode.INTERNAL, BackendError),
    ],
)
def test_grpc_errors_become_ours(code: grpc.StatusCode, kind: type[BackendError]) -> None:
    metadata = grpc.aio.Metadata()
    error = error_from(grpc.aio.AioRpcError(code, metadata, metadata, "why"))
    assert type(error) is kind
    assert "why" in str(error)
