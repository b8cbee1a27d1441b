"""A `GenerateRequest` as a protobuf message of TensorRT-LLM's core model; a response's numbers.

Pure; `triton.py` sends and receives. Scalars are [1, 1]: the model has a batch dimension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from compllm.backend import GenerateRequest
from compllm.tokenizer import SpecialIds
from compllm.types import SamplingParams, Usage

Tensors = Mapping[str, NDArray[Any]]
AdapterTensors = tuple[NDArray[np.float16], NDArray[np.int32]]  # [rows, width], [rows, 4]

_DTYPES = {
    np.dtype(np.int32): "INT32",
    np.dtype(np.uint64): "UINT64",
    np.dtype(np.float32): "FP32",
    np.dtype(np.float16): "FP16",
    np.dtype(np.bool_): "BOOL",
}
_READ = {"INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "BOOL": np.bool_}


def inference_message(
    request: GenerateRequest,
    wire_id: str,
    input_ids: Sequence[int],
    special: SpecialIds,
    *,
    is_streamed: bool,
    weights: AdapterTensors | None = None,
) -> Any:
    """The message that asks for this generation; `weights`: of its adapter, where it lacks them."""
    message = _message(request.model, wire_id, input_ids, request.sampling.max_tokens)
    _add(message, "end_id", [[special.end_id]], np.int32)
    _add(message, "pad_id", [[special.pad_id]], np.int32)
    if special.more_end_ids:
        words = [(end,) for end in special.more_end_ids]
        _add(message, "stop_words_list", [_flat_words(words)], np.int32)
    for name in (
        "exclude_input_in_output",
        "return_perf_metrics",
        "return_num_input_tokens",
        "return_num_output_tokens",
    ):
        _add(message, name, [[True]], np.bool_)
    _add(message, "streaming", [[is_streamed]], np.bool_)
    _add_sampling(message, request.sampling)
    if request.guide is not None:
        _add_text(message, "guided_decoding_guide_type", request.guide.type)
        _add_text(message, "guided_decoding_guide", request.guide.text)
    if request.adapter_id is not None:
        _add(message, "lora_task_id", [[request.adapter_id]], np.uint64)
        if weights is not None:
            _add(message, "lora_weights", weights[0][None], np.float16)
            _add(message, "lora_config", weights[1][None], np.int32)
    return message


def stop_message(model: str, wire_id: str) -> Any:
    """The message that cancels the request of this id. Required inputs must be there, unused."""
    message = _message(model, wire_id, [0], 1)
    _add(message, "stop", [[True]], np.bool_)
    return message


def read_ids(tensors: Tensors) -> list[int]:
    """New token ids of a response; none where it has no tensors."""
    if "output_ids" not in tensors:
        return []
    ids: list[int] = tensors["output_ids"].tolist()
    return ids[: int(tensors["sequence_length"][0])]


def read_tensors(response: Any) -> Tensors:
    """Numeric outputs of a ModelInferResponse by name; others are left out."""
    pairs = zip(response.outputs, response.raw_output_contents, strict=False)
    return {
        output.name: np.frombuffer(raw, _READ[output.datatype])
        for output, raw in pairs
        if output.datatype in _READ
    }


def is_final(response: Any) -> bool:
    """Whether nothing more follows under this id."""
    return bool(response.parameters["triton_final_response"].bool_param)


def read_usage(tensors: Tensors) -> Usage:
    """What a final response tells; 0 where it is silent. Times are differences: the clock is the
    engine's own."""

    def number(name: str) -> int:
        array = tensors.get(name)
        return int(array[0]) if array is not None and array.size else 0

    def since_arrival(name: str) -> float:
        at = number(name)
        return max(0.0, (at - number("arrival_time_ns")) / 1e9) if at else 0.0

    return Usage(
        num_input_tokens=number("num_input_tokens"),
        num_output_tokens=number("num_output_tokens"),
        kv_reused_blocks=number("kv_cache_reused_blocks"),
        kv_alloc_blocks=number("kv_cache_alloc_total_blocks"),
        scheduled_s=since_arrival("first_scheduled_time_ns"),
        first_token_s=since_arrival("first_token_time_ns"),
        total_s=since_arrival("last_token_time_ns"),
    )


def _message(model: str, wire_id: str, input_ids: Sequence[int], max_tokens: int) -> Any:
    message = service_pb2.ModelInferRequest(model_name=model, id=wire_id)
    # Else a final response without tensors, such as a stopped request's, would not be sent at all.
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    _add(message, "input_ids", [input_ids], np.int32)
    _add(message, "input_lengths", [[len(input_ids)]], np.int32)
    _add(message, "request_output_len", [[max_tokens]], np.int32)
    return message


def _add_sampling(message: Any, sampling: SamplingParams) -> None:
    """Greedy is top_k 1: TensorRT-LLM takes no temperature of 0. Neutral values are left out."""
    if sampling.temperature == 0:
        _add(message, "runtime_top_k", [[1]], np.int32)
    else:
        _add(message, "runtime_top_k", [[sampling.top_k]], np.int32)
        _add(message, "runtime_top_p", [[sampling.top_p]], np.float32)
        _add(message, "temperature", [[sampling.temperature]], np.float32)
        _add(message, "seed", [[sampling.seed % 2**64]], np.uint64)
    if sampling.repetition_penalty != 1:
        _add(message, "repetition_penalty", [[sampling.repetition_penalty]], np.float32)


def _flat_words(words: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """TensorRT-LLM's [2, n]: tokens of all words in a row; below, where each word ends, then -1."""
    tokens = [token for word in words for token in word]
    ends = np.cumsum([len(word) for word in words])
    flat = np.full((2, len(tokens)), -1, np.int32)
    flat[0] = tokens
    flat[1, : len(ends)] = ends
    return flat


def _add(message: Any, name: str, values: Any, dtype: type[np.generic]) -> None:
    array = np.ascontiguousarray(values, dtype)
    message.inputs.add(name=name, datatype=_DTYPES[array.dtype], shape=array.shape)
    message.raw_input_contents.append(array.tobytes())


def _add_text(message: Any, name: str, text: str) -> None:
    data = text.encode("utf-8")
    message.inputs.add(name=name, datatype="BYTES", shape=(1, 1))
    message.raw_input_contents.append(len(data).to_bytes(4, "little") + data)
