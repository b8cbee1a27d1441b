"""A `GenerateRequest` as a message for the `tensorrt_llm` model of Triton's `llmapi` repository.

Pure; `llmapi.py` sends and receives. That model has no batch dimension: scalars are [1]. Its inputs
are those of TensorRT-LLM 1.2.1, the three of LoRA those of 1.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

from compllm.backend import GenerateRequest
from compllm.backends.wire import LEAST_TOP_P, Tensors, add_array, add_texts, seed_of
from compllm.types import FinishReason, SamplingParams

LORA_INPUTS = ("lora_id", "lora_name", "lora_path")


@dataclass(frozen=True, slots=True)
class ServerAdapter:
    """A PEFT directory that the server can read."""

    name: str
    path: str  # on the server


def inference_message(
    request: GenerateRequest,
    wire_id: str,
    text: str,
    *,
    is_streamed: bool,
    adapter: ServerAdapter | None = None,
    wants_perf: bool = False,
) -> Any:
    """The message that asks for this generation. Guides are not in it: that model has none."""
    message = _message(request.model, wire_id, text)
    add_array(message, "streaming", [is_streamed], np.bool_)
    add_array(message, "sampling_param_exclude_input_from_output", [True], np.bool_)
    add_array(message, "return_finish_reason", [True], np.bool_)
    if wants_perf:
        add_array(message, "sampling_param_return_perf_metrics", [True], np.bool_)
    _add_sampling(message, request.sampling)
    if adapter is not None and request.adapter_id is not None:
        add_array(message, "lora_id", [request.adapter_id], np.uint64)
        add_texts(message, "lora_name", [adapter.name], (1,))
        add_texts(message, "lora_path", [adapter.path], (1,))
    return message


def stop_message(model: str, wire_id: str) -> Any:
    """The message that cancels the request of this id."""
    message = _message(model, wire_id, "")
    add_array(message, "stop", [True], np.bool_)
    return message


def read_text(tensors: Tensors) -> str:
    """All text of the request up to here: responses accumulate it."""
    texts = tensors.get("text_output")
    if texts is None or not texts.size:
        return ""
    text: str = texts[0].decode("utf-8", "replace")
    return text


def read_reason(tensors: Tensors) -> FinishReason:
    reasons = tensors.get("finish_reason")
    found = reasons[0].decode("utf-8", "replace") if reasons is not None and reasons.size else ""
    known: dict[str, FinishReason] = {"length": "length", "cancelled": "cancelled"}
    return known.get(found, "stop")


def read_number(tensors: Tensors, name: str) -> int:
    """Numbers are declared as such, but upstream's model sends them as text. 0 where silent."""
    values = tensors.get(name)
    if values is None or not values.size:
        return 0
    value = values.reshape(-1)[0]
    try:
        return int(float(value))
    except ValueError:
        return 0


def _message(model: str, wire_id: str, text: str) -> Any:
    message = service_pb2.ModelInferRequest(model_name=model, id=wire_id)
    message.parameters["triton_enable_empty_final_response"].bool_param = True
    add_texts(message, "text_input", [text], (1,))
    return message


def _add_sampling(message: Any, sampling: SamplingParams) -> None:
    """Greedy is top_k 1, as in the core model."""
    add_array(message, "sampling_param_max_tokens", [sampling.max_tokens], np.int32)
    if sampling.temperature == 0:
        add_array(message, "sampling_param_top_k", [1], np.int32)
    else:
        add_array(message, "sampling_param_top_k", [sampling.top_k], np.int32)
        add_array(message, "sampling_param_top_p", [max(sampling.top_p, LEAST_TOP_P)], np.float32)
        add_array(message, "sampling_param_temperature", [sampling.temperature], np.float32)
        add_array(message, "sampling_param_seed", [seed_of(sampling)], np.uint64)
    if sampling.stop:
        add_texts(message, "sampling_param_stop", sampling.stop, (len(sampling.stop),))
