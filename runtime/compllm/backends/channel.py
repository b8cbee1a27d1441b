"""The gRPC channel to a Triton: opened, waited for, asked for a model's configuration.

Stands under the two backends, `triton.py` and `llmapi.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from compllm.backends.stream import error_from
from compllm.errors import BackendUnavailable

CORE_MODEL = "tensorrt_llm"
_POLL_S = 0.05  # between questions to a server that is up but not yet ready

_OPTIONS = [
    ("grpc.max_send_message_length", -1),  # an adapter's weights are megabytes
    ("grpc.max_receive_message_length", -1),
    # A server that comes back is found at once, not after a pause that grew while it was away.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]


def open_channel(url: str) -> grpc.aio.Channel:
    options = list(_OPTIONS)
    if url.startswith(("127.", "localhost:", "[::1]")):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy cannot mean this machine
    return grpc.aio.insecure_channel(url, options=options)


def stub_of(channel: grpc.aio.Channel) -> Any:
    return service_pb2_grpc.GRPCInferenceServiceStub(channel)


async def wait_ready(stub: Any, url: str, timeout_s: float, model: str = CORE_MODEL) -> None:
    """Return when `model` can be asked. Raises BackendUnavailable when time is up."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    while True:
        cause: grpc.RpcError | None = None
        question = service_pb2.ModelReadyRequest(name=model)
        try:
            answer = await stub.ModelReady(question, timeout=max(0.05, deadline - loop.time()))
            if answer.ready:
                return
            why = f"{model} is not loaded"
        except grpc.aio.AioRpcError as foreign:
            cause, why = foreign, str(foreign.details())
        if loop.time() + _POLL_S > deadline:
            message = f"no ready server at {url} within {timeout_s:g} s: {why}"
            raise BackendUnavailable(message) from cause
        await asyncio.sleep(_POLL_S)


async def model_config(url: str, timeout_s: float, model: str = CORE_MODEL) -> Any:
    """The ModelConfig of `model`, once it is ready. Raises BackendUnavailable, BackendError."""
    return (await model_configs(url, timeout_s, model))[model]


async def model_configs(
    url: str, timeout_s: float, model: str = CORE_MODEL, others: Iterable[str] = ()
) -> dict[str, Any]:
    """The ModelConfig of `model`, once it is ready, and of the other models that are there.

    Raises BackendUnavailable, BackendError.
    """
    async with open_channel(url) as channel:
        stub = stub_of(channel)
        await wait_ready(stub, url, timeout_s, model)
        try:
            configs = {model: await _config_of(stub, model, timeout_s)}
        except grpc.RpcError as foreign:
            raise error_from(foreign) from foreign
        for other in dict.fromkeys(others):
            if other != model:
                with suppress(grpc.RpcError):
                    configs[other] = await _config_of(stub, other, timeout_s)
        return configs


async def _config_of(stub: Any, model: str, timeout_s: float) -> Any:
    question = service_pb2.ModelConfigRequest(name=model)
    return (await stub.ModelConfig(question, timeout=timeout_s)).config
