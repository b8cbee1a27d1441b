"""A gRPC server on the loopback that sends the answers a test names: for the client's tests."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2, service_pb2_grpc

MISSING = (
    "Executor failed process requestId 1 due to the following error: LoRA task 7 not found in "
    "cache. Please send LoRA weights with request"
)

Respond = Callable[..., Awaitable[None]]
Handler = Callable[[Any, Respond], Awaitable[None]]


class Loopback(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Hands each message to `handler`, each in a task of its own, and keeps it."""

    def __init__(self) -> None:
        self.handler: Handler = answer_hello
        self.messages: list[Any] = []
        self.stopped: asyncio.Queue[str] = asyncio.Queue()
        self.tokenizer_dir = ""
        self.batch_sizes = {"tensorrt_llm": 0}  # of the models that are there
        self.configs_asked: list[str] = []
        self.url = ""
        self.server = grpc.aio.server()
        self._writing = asyncio.Lock()

    async def ModelStreamInfer(self, messages: Any, context: Any) -> None:
        async with asyncio.TaskGroup() as tasks:
            async for message in messages:
                if "stop" in inputs(message):
                    self.stopped.put_nowait(message.id)
                    continue
                self.messages.append(message)
                tasks.create_task(self._answer(message, context))

    async def _answer(self, message: Any, context: Any) -> None:
        async def respond(
            ids: list[int] | None = None, error: str = "", *, is_final: bool = False, **more: Any
        ) -> None:
            response = service_pb2.ModelInferResponse(id=message.id)
            response.parameters["triton_final_response"].bool_param = is_final
            if ids is not None:
                arrays = {"output_ids": [[ids]], "sequence_length": [[len(ids)]]} | {
                    name: [[value]] for name, value in more.items()
                }
                for name, value in arrays.items():
                    dtype, datatype = _type(name)
                    array = np.array(value, dtype)
                    response.outputs.add(name=name, datatype=datatype, shape=array.shape)
                    response.raw_output_contents.append(array.tobytes())
            answer = service_pb2.ModelStreamInferResponse(
                error_message=error, infer_response=response
            )
            async with self._writing:
                await context.write(answer)

        await self.handler(message, respond)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        return service_pb2.ModelReadyResponse(ready=True)

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        self.configs_asked.append(request.name)
        if request.name not in self.batch_sizes:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown model")
        answer = service_pb2.ModelConfigResponse()
        answer.config.max_batch_size = self.batch_sizes[request.name]
        answer.config.parameters["tokenizer_dir"].string_value = self.tokenizer_dir
        return answer


def _type(name: str) -> tuple[type[np.generic], str]:
    """Of an output of this name."""
    if name.endswith("_log_probs"):
        return np.float32, "FP32"
    return (np.int64, "INT64") if name.endswith("_ns") else (np.int32, "INT32")


def inputs(message: Any) -> dict[str, Any]:
    """Tensors of a message by name."""
    dtypes = {"INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32, "BOOL": np.bool_}
    found: dict[str, Any] = {}
    for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            assert int.from_bytes(raw[:4], "little") == len(raw) - 4
            found[tensor.name] = raw[4:].decode()
        else:
            dtype = dtypes.get(tensor.datatype, np.float16)
            found[tensor.name] = np.frombuffer(raw, dtype).reshape(tensor.shape).tolist()
    return found


HELLO = [28120, 905]  # "hello" and " world", checked below


async def answer_hello(message: Any, respond: Respond) -> None:
    for token in HELLO[:-1]:
        await respond([token])
    await respond(HELLO[-1:], is_final=True)


async def never(message: Any, respond: Respond) -> None:
    await respond(HELLO[:1])
    await asyncio.Event().wait()
