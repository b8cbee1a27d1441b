"""Clients of the `comp_llm` model."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc as triton

from compllm.server.triton_state import ServerInfo

MODEL, CORE = "comp_llm", "tensorrt_llm"


QUESTION = "What is the atomic number of iron, and how many chromosomes does a human cell have?"


MAX_TOKENS = 24  # the tiny engine holds few, and the plan's examples are among them


WAIT_S = 60.0


TYPES = {
    "text_input": ("BYTES", np.object_),
    "max_tokens": ("INT32", np.int32),
    "temperature": ("FP32", np.float32),
    "top_p": ("FP32", np.float32),
    "seed": ("UINT64", np.uint64),
    "stream": ("BOOL", np.bool_),
    "deadline_ms": ("INT32", np.int32),
}


def num_active(server: ServerInfo) -> float:
    with urllib.request.urlopen(server.metrics_url) as answer:
        text = answer.read().decode()
    (value,) = re.findall(r'^nv_trt_llm_request_metrics{.*"active".*} (\S+)$', text, re.MULTILINE)
    return float(value)


def inputs(text: str = QUESTION, **more: Any) -> list[triton.InferInput]:
    given = {"text_input": text.encode(), "max_tokens": MAX_TOKENS} | more
    made = []
    for name, value in given.items():
        triton_type, numpy_type = TYPES[name]
        tensor = triton.InferInput(name, [1, 1], triton_type)
        tensor.set_data_from_numpy(np.array([[value]], numpy_type))
        made.append(tensor)
    return made


def texts(result: Any) -> dict[str, str]:
    names = (each.name for each in result.get_response().outputs)
    return {name: result.as_numpy(name)[0, 0].decode() for name in names}


async def stream(client: Any, **more: Any) -> list[dict[str, str]]:
    """All responses to one question on a stream of its own."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": MODEL, "inputs": inputs(stream=True, **more)}

    responses = []
    async for result, error in client.stream_infer(requests()):
        if error is not None:
            raise error
        responses.append(texts(result))
        if "finish_reason" in responses[-1]:
            break
    return responses


def post(server: ServerInfo, endpoint: str, **body: Any) -> bytes:
    url = f"{server.http_url}/v2/models/{MODEL}/{endpoint}"
    request = urllib.request.Request(url, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
        return bytes(answer.read())


def generate(server: ServerInfo, **body: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(post(server, "generate", **body))
    return value


def generate_stream(server: ServerInfo, **body: Any) -> list[dict[str, Any]]:
    lines = post(server, "generate_stream", **body).decode().splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line]
