"""What a server answers about itself, over gRPC: its name, whether it is ready, its models.

HTTP may be closed, and gRPC is what the path needs anyway. Nothing here changes a server.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from compllm.errors import ServerError
from compllm.server.triton_state import ADMIN_HEADER, HOST, ServerInfo

HEALTH_S = 5.0  # above a pause of the machine: a server that hangs this long is reported
_CONNECT_S = 1.0
_HEADER_PREFIX = "triton-grpc-protocol-"  # Triton's, before the name of a key
# In gRPC's words about a program that answers as an HTTP server does.
_HTTP_ANSWERS = ("http1", "Failed parsing HTTP/2")
_OPTIONS = [("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1)]


class NoAnswer(Exception):
    """Nothing answers at the server's port, or not in time."""


def name_of(info: ServerInfo) -> str | None:
    """The name of what answers there; None: another program, which is no Triton. Raises
    NoAnswer."""
    import grpc

    with asked(info) as (stub, messages):
        try:
            question = messages.ServerMetadataRequest()
            return str(stub.ServerMetadata(question, timeout=HEALTH_S).name)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                if any(each in str(error.details()) for each in _HTTP_ANSWERS):
                    return None
                raise NoAnswer(_reason(error)) from error
            return None


def is_ready(info: ServerInfo) -> bool:
    """Ready, and the very process that was started: its name is in the answer. Triton opens HTTP
    and the metrics after gRPC."""
    try:
        for port in filter(None, (info.http_port, info.metrics_port)):
            _connect(port)
        return says_ready(info) and name_of(info) == info.id
    except NoAnswer:
        return False


def says_ready(info: ServerInfo) -> bool:
    """What the server says. Raises NoAnswer."""
    import grpc

    with asked(info) as (stub, messages):
        try:
            answer = stub.ServerReady(messages.ServerReadyRequest(), timeout=HEALTH_S)
        except grpc.RpcError as error:
            raise NoAnswer(_reason(error)) from error
        return bool(answer.ready)


def is_foreign(info: ServerInfo) -> bool:
    """Whether another program answers at the server's port."""
    try:
        return name_of(info) != info.id
    except NoAnswer:
        return False


def models(info: ServerInfo) -> list[dict[str, Any]]:
    """Name, readiness, state and its reason of each model there is. Raises ServerError."""
    try:
        return _models(info)
    except NoAnswer as error:
        raise ServerError(f"{info.grpc_url} does not report its models: {error}") from error


def _models(info: ServerInfo) -> list[dict[str, Any]]:
    """Raises NoAnswer."""
    import grpc

    with asked(info) as (stub, messages):
        try:
            question = messages.RepositoryIndexRequest()
            key = admin_key(info)
            index = stub.RepositoryIndex(question, timeout=HEALTH_S, metadata=key).models
            found = []
            for each in index:
                ready = stub.ModelReady(
                    messages.ModelReadyRequest(name=each.name), timeout=HEALTH_S
                ).ready
                found.append(
                    {
                        "name": each.name,
                        "is_ready": bool(ready),
                        "state": (each.state or "UNAVAILABLE").lower(),
                        **({"reason": each.reason} if each.reason else {}),
                    }
                )
            return found
        except grpc.RpcError as error:
            raise NoAnswer(_reason(error)) from error


def admin_key(info: ServerInfo) -> tuple[tuple[str, str], ...]:
    """What a request brings along that only the server's owner may make."""
    return ((_HEADER_PREFIX + ADMIN_HEADER, info.admin_key),)


@contextmanager
def asked(info: ServerInfo) -> Iterator[tuple[Any, Any]]:
    """Triton's gRPC service at the server's port, and its messages. Raises NoAnswer where no
    program listens there."""
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    _connect(info.grpc_port)  # gRPC itself would try again for a while, in a thread
    with grpc.insecure_channel(info.grpc_url, options=_OPTIONS) as channel:
        yield service_pb2_grpc.GRPCInferenceServiceStub(channel), service_pb2


def _connect(port: int) -> None:
    """Raises NoAnswer where no program listens."""
    try:
        socket.create_connection((HOST, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise NoAnswer(str(error)) from error


def _reason(error: Any) -> str:
    return " ".join(str(error.details() or error.code().name).split())[:200]
