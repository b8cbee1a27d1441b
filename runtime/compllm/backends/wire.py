"""A `GenerateRequest` as a protobuf message of TensorRT-LLM's core model; a response's numbers.

Pure; `triton.py` sends and receives. Scalars are [1, 1]: the model has a batch dimension.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2

from compllm.backend import GenerateRequest
from compllm.backends.tokenizer import SpecialIds
from compllm.types import SamplingParams, Usage

Tensors = Mapping[str, NDArray[Any]]
AdapterTensors = tuple[NDArray[np.float16], NDArray[np.int32]]  # [rows, width], [rows, 4]

# TensorRT-LLM takes a top_p of 0 beside a top_k for 1. This keeps the likeliest token alone.
LEAST_TOP_P = 1e-6

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
    message.MergeFrom(
        _settings(
            special, request.sampling, is_streamed, request.wants_log_probs, request.wants_perf
        )
    )
    if request.sampling.temperature != 0:
        add_array(message, "seed", [[seed_of(request.sampling)]], np.uint64)
    if request.guide is not None:
        add_texts(message, "guided_decoding_guide_type", [request.guide.type], (1, 1))
        add_texts(message, "guided_decoding_guide", [request.guide.text], (1, 1))
    if request.adapter_id is not None:
        add_array(message, "lora_task_id", [[request.adapter_id]], np.uint64)
        if weights is not None:
            add_array(message, "lora_weights", weights[0][None], np.float16)
            add_array(message, "lora_config", weights[1][None], np.int32)
    return message


def seed_of(sampling: SamplingParams) -> int:
    """The seed as the wire has it; a fresh one where none is given."""
    return secrets.randbits(64) if sampling.seed is None else sampling.seed % 2**64


def stop_message(model: str, wire_id: str) -> Any:
    """The message that cancels the request of this id. Required inputs must be there, unused."""
    message = _message(model, wire_id, [0], 1)
    add_array(message, "stop", [[True]], np.bool_)
    return message


def read_ids(tensors: Tensors) -> list[int]:
    """New token ids of a response; none where it has no tensors."""
    if "output_ids" not in tensors:
        return []
    ids: list[int] = tensors["output_ids"].tolist()
    return ids[: int(tensors["sequence_length"][0])]


def read_log_probs(tensors: Tensors, num_before: int, num_new: int) -> tuple[float, ...]:
    """Those of a response's new tokens; none where it does not have them all.

    A response holds those of all output tokens up to here, `num_before` of earlier responses first.
    """
    known = tensors.get("output_log_probs")
    if known is None or known.size < num_before + num_new:
        return ()
    return tuple(known[num_before : num_before + num_new].tolist())


def read_tensors(response: Any) -> Tensors:
    """Outputs of a ModelInferResponse by name; texts are bytes. Other types are left out."""
    found: dict[str, NDArray[Any]] = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=False):
        if output.datatype == "BYTES":
            found[output.name] = np.array(_read_texts(raw), np.object_)
        elif output.datatype in _READ:
            found[output.name] = np.frombuffer(raw, _READ[output.datatype])
    return found


def is_final(response: Any) -> bool:
    """Whether nothing more follows under this id."""
    return bool(response.parameters["triton_final_response"].bool_param)


def read_usage(tensors: Tensors) -> Usage:
    """What a final response reports; 0 for what it lacks. Times are differences, as the clock is
    the engine's own."""

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


def _read_texts(raw: bytes) -> list[bytes]:
    """Each with its length before it, in four bytes."""
    texts, at = [], 0
    while at < len(raw):
        end = at + 4 + int.from_bytes(raw[at : at + 4], "little")
        texts.append(raw[at + 4 : end])
        at = end
    return texts


def _message(model: str, wire_id: str, input_ids: Sequence[int], max_tokens: int) -> Any:
    message = service_pb2.ModelInferRequest(model_name=model, id=wire_id)
    # Else a final response without tensors, such as a stopped request's, would not be sent at all.
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    add_array(message, "input_ids", [input_ids], np.int32)
    add_array(message, "input_lengths", [[len(input_ids)]], np.int32)
    add_array(message, "request_output_len", [[max_tokens]], np.int32)
    return message


@lru_cache(256)
def _settings(
    special: SpecialIds,
    sampling: SamplingParams,
    is_streamed: bool,
    wants_log_probs: bool,
    wants_perf: bool,
) -> Any:
    """The inputs that requests have in common: made once, since a fork's last child waits until
    the messages of all before it are made."""
    message = service_pb2.ModelInferRequest()
    add_array(message, "end_id", [[special.end_id]], np.int32)
    add_array(message, "pad_id", [[special.pad_id]], np.int32)
    if special.more_end_ids:
        words = [(end,) for end in special.more_end_ids]
        add_array(message, "stop_words_list", [_flat_words(words)], np.int32)
    for name in (
        "exclude_input_in_output",
        *(("return_perf_metrics",) if wants_perf else ()),
        "return_num_input_tokens",
        "return_num_output_tokens",
    ):
        add_array(message, name, [[True]], np.bool_)
    add_array(message, "streaming", [[is_streamed]], np.bool_)
    if wants_log_probs:
        # TensorRT-LLM heeds it only where a sampling parameter is set, as one always is below.
        add_array(message, "return_log_probs", [[True]], np.bool_)
    _add_sampling(message, sampling)
    return message


def _add_sampling(message: Any, sampling: SamplingParams) -> None:
    """Greedy is top_k 1: TensorRT-LLM takes no temperature of 0. Neutral values are left out."""
    if sampling.temperature == 0:
        add_array(message, "runtime_top_k", [[1]], np.int32)
    else:
        add_array(message, "runtime_top_k", [[sampling.top_k]], np.int32)
        add_array(message, "runtime_top_p", [[max(sampling.top_p, LEAST_TOP_P)]], np.float32)
        add_array(message, "temperature", [[sampling.temperature]], np.float32)
    if sampling.repetition_penalty != 1:
        add_array(message, "repetition_penalty", [[sampling.repetition_penalty]], np.float32)
    if sampling.min_tokens:
        add_array(message, "min_tokens", [[sampling.min_tokens]], np.int32)


def _flat_words(words: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """TensorRT-LLM's [2, n]: tokens of all words in a row; below, where each word ends, then -1."""
    tokens = [token for word in words for token in word]
    ends = np.cumsum([len(word) for word in words])
    flat = np.full((2, len(tokens)), -1, np.int32)
    flat[0] = tokens
    flat[1, : len(ends)] = ends
    return flat


def add_array(message: Any, name: str, values: Any, dtype: type[np.generic]) -> None:
    array = np.ascontiguousarray(values, dtype)
    message.inputs.add(name=name, datatype=_DTYPES[array.dtype], shape=array.shape)
    message.raw_input_contents.append(array.tobytes())


def add_texts(message: Any, name: str, texts: Sequence[str], shape: Sequence[int]) -> None:
    data = [text.encode("utf-8", "replace") for text in texts]
    message.inputs.add(name=name, datatype="BYTES", shape=shape)
    message.raw_input_contents.append(
        b"".join(len(each).to_bytes(4, "little") + each for each in data)
    )
