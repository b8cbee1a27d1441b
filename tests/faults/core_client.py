"""A client of the `tensorrt_llm` model that sends any tensors, right or wrong."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

from compllm.backends import wire
from compllm.server.triton_state import ServerInfo

WAIT_S = 60.0
# A channel of its own for each request: one that the server broke is not waited for.
_OPTIONS = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]


class Refused(Exception):
    """The server's words for why it did not answer."""


def message(tensors: Mapping[str, Any] | None = None, *, max_tokens: int = 8) -> Any:
    """A greedy request of three tokens with these tensors: arrays, and texts as str."""
    plain = {
        "input_ids": np.array([[5, 6, 7]], np.int32),
        "input_lengths": np.array([[3]], np.int32),
        "request_output_len": np.array([[max_tokens]], np.int32),
        "exclude_input_in_output": np.array([[True]]),
    }
    made = service_pb2.ModelInferRequest(model_name="tensorrt_llm", id="attack")
    for name, value in (plain | dict(tensors or {})).items():
        if isinstance(value, str):
            wire.add_texts(made, name, [value], (1, 1))
        else:
            wire.add_array(made, name, value, value.dtype.type)
    return made


def scalars(dtype: type[np.generic], **values: float) -> dict[str, Any]:
    """A tensor of one element for each value."""
    return {name: np.array([[value]], dtype) for name, value in values.items()}


def infer(
    server: ServerInfo, tensors: Mapping[str, Any] | None = None, *, max_tokens: int = 8
) -> list[int]:
    """The output ids of a request. Raises Refused, grpc.RpcError."""
    ids: list[int] = []
    for response in responses(server, [message(tensors, max_tokens=max_tokens)]):
        if response.error_message:
            raise Refused(response.error_message)
        ids += wire.read_ids(wire.read_tensors(response.infer_response))
    return ids


def responses(
    server: ServerInfo, messages: Iterable[Any], metadata: tuple[tuple[str, str], ...] = ()
) -> list[Any]:
    """All that comes back on one stream. Raises grpc.RpcError."""
    with grpc.insecure_channel(server.grpc_url, options=_OPTIONS) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return list(stub.ModelStreamInfer(iter(messages), timeout=WAIT_S, metadata=metadata))


def check_right_within(server: ServerInfo, expected: list[int], seconds: float) -> None:
    """Ask until there is an answer: it must come in time, and be this one."""
    start_s, reason = time.monotonic(), ""
    while time.monotonic() - start_s < seconds:
        try:
            assert infer(server) == expected
        except (Refused, grpc.RpcError) as error:
            reason = str(error)
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"no answer for {seconds:g} s: {reason}")
