"""Raw requests to a Triton over gRPC, and every response as it came.

On purpose not the runtime's client: that one retries, resends and hides, here each message counts.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2, service_pb2_grpc

from compllm.errors import BackendUnavailable

Array = NDArray[Any]
Tensors = Mapping[str, Array]

_TYPES = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT64": np.uint64,
    "FP16": np.float16,
    "FP32": np.float32,
}
_NAMES = {np.dtype(kind): name for name, kind in _TYPES.items()}
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]


@dataclass(frozen=True, slots=True)
class Response:
    """One message back."""

    tensors: Tensors  # in their shapes; texts as bytes
    error: str
    is_final: bool
    at_s: float  # monotonic


class Client:
    """Any number of streams to one server. timeout_s: of silence, then a request has failed."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._channel = grpc.insecure_channel(url, options=_OPTIONS)
        self.stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def stream(self) -> Stream:
        return Stream(self.stub, self.timeout_s)

    def ask(self, tensors: Tensors, model: str = "tensorrt_llm") -> list[Response]:
        """Every response to one request, the final one last."""
        return self.ask_all([tensors], model)[0]

    def ask_all(
        self, requests: Sequence[Tensors], model: str = "tensorrt_llm"
    ) -> list[list[Response]]:
        """All at once over one stream; the responses of each."""
        with self.stream() as stream:
            for number, tensors in enumerate(requests):
                stream.send(message(model, f"r{number}", tensors))
            return [list(stream.responses(f"r{number}")) for number in range(len(requests))]

    def close(self) -> None:
        self._channel.close()


class Stream:
    """One bidirectional stream: messages out, each request's responses in an inbox of its own."""

    def __init__(self, stub: Any, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._inboxes: dict[str, queue.SimpleQueue[Response]] = {}
        self._lock = threading.Lock()
        self._call = stub.ModelStreamInfer(iter(self._outbox.get, None))
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def send(self, request: Any) -> None:
        self._outbox.put(request)

    def next(self, request_id: str) -> Response:
        """The next response to this request. Raises BackendUnavailable after silence."""
        try:
            return self._inbox(request_id).get(timeout=self._timeout_s)
        except queue.Empty:
            raise BackendUnavailable(
                f"no response to {request_id!r} within {self._timeout_s:g} s"
            ) from None

    def responses(self, request_id: str) -> Iterator[Response]:
        """All of them, up to the final one."""
        while True:
            response = self.next(request_id)
            yield response
            if response.is_final:
                return

    def close(self) -> None:
        """Cancel the stream, and with it whatever is under way on it."""
        self._call.cancel()
        self._outbox.put(None)
        self._reader.join()

    def _inbox(self, request_id: str) -> queue.SimpleQueue[Response]:
        with self._lock:
            return self._inboxes.setdefault(request_id, queue.SimpleQueue())

    def _read(self) -> None:
        try:
            for answer in self._call:
                inner = answer.infer_response
                is_final = inner.parameters["triton_final_response"].bool_param
                error = answer.error_message
                self._inbox(inner.id).put(
                    Response(_tensors(inner), error, bool(is_final or error), time.monotonic())
                )
        except grpc.RpcError as end:
            with self._lock:
                inboxes = list(self._inboxes.values())
            for inbox in inboxes:
                inbox.put(Response({}, f"the stream ended: {end}", True, time.monotonic()))


def message(model: str, request_id: str, tensors: Tensors) -> Any:
    """A ModelInferRequest of these tensors. Texts are arrays of objects."""
    request = service_pb2.ModelInferRequest(model_name=model, id=request_id)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, array in tensors.items():
        if array.dtype == np.object_:
            datatype, raw = "BYTES", b"".join(_text(value) for value in array.flat)
        else:
            datatype, raw = _NAMES[array.dtype], np.ascontiguousarray(array).tobytes()
        request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        request.raw_input_contents.append(raw)
    return request


def _text(value: str) -> bytes:
    data = value.encode("utf-8")
    return len(data).to_bytes(4, "little") + data


def _tensors(response: Any) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        shape = tuple(output.shape)
        if output.datatype == "BYTES":
            found[output.name] = _texts(raw).reshape(shape)
        elif output.datatype in _TYPES:
            found[output.name] = np.frombuffer(raw, _TYPES[output.datatype]).reshape(shape)
    return found


def _texts(raw: bytes) -> Array:
    texts, place = [], 0
    while place < len(raw):
        size = int.from_bytes(raw[place : place + 4], "little")
        texts.append(raw[place + 4 : place + 4 + size])
        place += 4 + size
    return np.array(texts, np.object_)
