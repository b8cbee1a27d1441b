"""A client of a real server cannot replace what all clients use, nor stop it with one request."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton

from compllm.formats.lora_tensors import read_engine_adapter
from compllm.server.health import is_ready
from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton


def infer(server: ServerInfo, tensors: dict[str, Any]) -> list[int]:
    """The output ids of an unstreamed request."""
    plain = {
        "input_ids": np.array([[5, 6, 7]], np.int32),
        "input_lengths": np.array([[3]], np.int32),
        "request_output_len": np.array([[8]], np.int32),
    }
    kinds = {"i4": "INT32", "u8": "UINT64", "f2": "FP16", "f4": "FP32", "i8": "INT64"}
    inputs = []
    for name, array in (plain | tensors).items():
        made = triton.InferInput(name, array.shape, kinds[array.dtype.str[1:]])
        made.set_data_from_numpy(array)
        inputs.append(made)
    answers: list[Any] = []
    with triton.InferenceServerClient(server.grpc_url) as client:
        client.start_stream(lambda result, error: answers.append((result, error)))
        client.async_stream_infer("tensorrt_llm", inputs)
        client.stop_stream()
    result, error = answers[0]
    if error is not None:
        raise error
    return [int(each) for each in result.as_numpy("output_ids").reshape(-1)]


def test_a_client_cannot_replace_a_shipped_expert(
    server: ServerInfo, engine_dir: Path, task_ids: dict[str, int]
) -> None:
    task_id = task_ids["chemistry"]
    named = {"lora_task_id": np.array([[task_id]], np.uint64)}
    before = infer(server, named)
    tensors = read_engine_adapter(engine_dir, task_id)
    assert tensors is not None
    weights, config = tensors
    sent = named | {"lora_weights": weights[None], "lora_config": config[None]}
    assert infer(server, sent) == before  # the same content may be sent
    with pytest.raises(Exception, match="differ from the adapter that has this id"):
        infer(server, sent | {"lora_weights": -weights[None]})
    assert infer(server, named) == before


def test_one_request_with_extreme_penalties_ends_alone(server: ServerInfo) -> None:
    before = infer(server, {})
    extreme = {"repetition_penalty": 1e-40, "runtime_top_p": 0.9}
    tensors = {name: np.array([[value]], np.float32) for name, value in extreme.items()}
    with pytest.raises(Exception, match=r"repetition_penalty is .*: it must be a number from"):
        infer(server, tensors)
    assert is_ready(server)
    assert infer(server, {}) == before
