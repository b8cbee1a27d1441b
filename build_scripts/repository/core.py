"""The core model's config.pbtxt, as a protobuf message: of a TensorRT-LLM engine, and of its
embedded twin. Both are upstream's tensor list; what differs is backend, outputs and parameters.

A parameter that is to keep the backend's default is left out rather than left empty: the backend
takes an empty `max_attention_window_size` at its word.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from compllm.build_scripts.repository import upstream
from compllm.build_scripts.repository.upstream import Tensor
from compllm.build_scripts.trtllm.memory import optimal_adapter_size

MODEL_NAME = "tensorrt_llm"
TRTLLM_BACKEND = "tensorrtllm"  # the C++ one; the other spelling, "python", lacks LoRA statistics
EXECUTOR_WORKER = "/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker"

_CUDA_GRAPHS = 16  # kept of decoding steps; each batch size has one, and each takes memory
# Outputs that the embedded engine cannot fill are not declared by it.
_NOT_EMBEDDED = frozenset(
    (
        "context_logits",
        "generation_logits",
        "context_phase_params",
        "acceptance_rate",
        "total_accepted_draft_tokens",
        "total_draft_tokens",
    )
)
# Its parameters: upstream's names where the meaning is the same, and one of its own. ${...} is
# filled when a server starts.
EMBEDDED_ONLY = frozenset(("executor_options",))
_EMBEDDED_PARAMETERS = {
    "gpt_model_path": "${engine_dir}",
    "tokenizer_dir": "${tokenizer_dir}",
    "max_beam_width": "1",
    "max_tokens_in_paged_kv_cache": "",
    "enable_kv_cache_reuse": "true",
    "exclude_input_in_output": "false",
    "cancellation_check_period_ms": "10",
    "executor_options": "${executor_options}",
}
_EMBEDDED_HEADER = """\
# TensorRT-LLM's core model on the embedded engine: upstream's tensors (1.2 line), the Python
# backend. Made by `make_triton_repo.py --embedded-template`; a test compares. Outputs that this
# engine cannot fill (logits, drafts) are not declared; inputs it cannot honour are, and
# refused when they ask for something. Placeholders are filled when a server starts.
"""


@dataclass(frozen=True, slots=True)
class GuidedDecoding:
    """What the C++ backend needs to keep an output inside a grammar."""

    tokenizer_info: Path  # made by guides.py


@dataclass(frozen=True, slots=True)
class LoraCache:
    """The engine's two caches of adapters."""

    max_rank: int  # must cover the largest adapter's rank
    gpu_fraction: float  # of the memory that is free before the KV cache is made
    host_bytes: int
    adapter_ids: tuple[int, ...] = ()  # that this model serves


@dataclass(frozen=True, slots=True)
class CoreModel:
    """One `tensorrt_llm` model: which engine, where, with how much memory."""

    name: str
    engine_dir: Path
    tokenizer_dir: Path
    max_batch_size: int  # of one Triton request; the engine batches over requests by itself
    gpu_ids: tuple[int, ...]
    kv_fraction: float  # of the memory that is free when the model loads
    kv_tokens: int | None = None  # a fixed budget, where engines share a GPU
    has_cuda_graphs: bool = False
    has_paged_context: bool = True  # paged context FMHA: for KV reuse and chunked context
    lora: LoraCache | None = None
    guided: GuidedDecoding | None = None
    cancellation_check_period_ms: int = 10
    more: Mapping[str, str] = field(default_factory=dict)  # further upstream parameters


def gpu_config(model: CoreModel) -> Any:
    """The ModelConfig of a TensorRT-LLM engine."""
    config = _config(model.name, TRTLLM_BACKEND, model.max_batch_size)
    _add_tensors(config, upstream.core().inputs, upstream.core().outputs)
    # 0 is unlimited: what may wait is bounded before Triton, by the runtime's admission queue.
    config.dynamic_batching.preferred_batch_size.append(model.max_batch_size)
    config.dynamic_batching.max_queue_delay_microseconds = 0
    config.dynamic_batching.default_queue_policy.max_queue_size = 0
    _add_parameters(config, _gpu_parameters(model))
    return config


def embedded_config() -> Any:
    """The ModelConfig of the embedded engine, its places filled when a server starts."""
    # One sequence a request: they are batched in flight by the engine.
    config = _config(MODEL_NAME, "python", max_batch_size=1)
    outputs = [each for each in upstream.core().outputs if each.name not in _NOT_EMBEDDED]
    _add_tensors(config, upstream.core().inputs, outputs)
    _add_parameters(config, _EMBEDDED_PARAMETERS)
    return config


def embedded_template() -> str:
    """The text of triton_repo/tensorrt_llm/config.pbtxt."""
    return _EMBEDDED_HEADER + render(embedded_config())


def render(config: Any) -> str:
    """config.pbtxt of a ModelConfig."""
    text: str = text_format.MessageToString(config, as_utf8=True)
    return text


def parse(text: str) -> Any:
    """The ModelConfig in a config.pbtxt. Raises text_format.ParseError."""
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def _config(name: str, backend: str, max_batch_size: int) -> Any:
    config = model_config_pb2.ModelConfig(name=name, backend=backend, max_batch_size=max_batch_size)
    config.model_transaction_policy.decoupled = True
    # KIND_CPU as upstream has it, on GPUs too: which ones is said by gpu_device_ids alone. One
    # instance: each would have an executor of its own, and a `stop` reaches only one of them.
    config.instance_group.add(count=1, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    return config


def _gpu_parameters(model: CoreModel) -> dict[str, str]:
    guided = model.guided
    values = {
        "gpt_model_type": "inflight_fused_batching",
        "gpt_model_path": str(model.engine_dir),
        "executor_worker_path": EXECUTOR_WORKER,
        "FORCE_CPU_ONLY_INPUT_TENSORS": "no",
        "max_beam_width": "1",
        "batch_scheduler_policy": "guaranteed_no_evict",
        "kv_cache_free_gpu_mem_fraction": f"{model.kv_fraction:g}",
        "enable_kv_cache_reuse": "true" if model.has_paged_context else "false",
        "enable_chunked_context": "true" if model.has_paged_context else "false",
        "exclude_input_in_output": "false",  # as upstream; the runtime asks for it by request
        # The default, true, gives each greedy token the probability 1: its share of the one token
        # that top-k 1 leaves.
        "normalize_log_probs": "false",
        "cancellation_check_period_ms": str(model.cancellation_check_period_ms),
        "stats_check_period_ms": "100",
        "gpu_device_ids": ",".join(str(each) for each in model.gpu_ids),
        # Without these three keys, whatever they say, the C++ instance does not start.
        "tokenizer_dir": str(model.tokenizer_dir),
        "guided_decoding_backend": "xgrammar" if guided else "",
        "xgrammar_tokenizer_info_path": str(guided.tokenizer_info) if guided else "",
    }
    if model.has_cuda_graphs:
        values["cuda_graph_mode"] = "true"
        values["cuda_graph_cache_size"] = str(_CUDA_GRAPHS)
    if model.kv_tokens is not None:
        values["max_tokens_in_paged_kv_cache"] = str(model.kv_tokens)
    if model.lora is not None:
        values["lora_cache_max_adapter_size"] = str(model.lora.max_rank)
        values["lora_cache_optimal_adapter_size"] = str(optimal_adapter_size(model.lora.max_rank))
        values["lora_cache_gpu_memory_fraction"] = f"{model.lora.gpu_fraction:g}"
        values["lora_cache_host_memory_bytes"] = str(model.lora.host_bytes)
        # lora_prefetch_dir is never set: the backend reads the names of its folders with
        # std::stoi, and our ids have up to 53 bits. Warm-up requests bring the adapters instead.
    return {**values, **model.more}


def _add_tensors(config: Any, inputs: Any, outputs: Any) -> None:
    for tensor in inputs:
        added = config.input.add()
        _set_tensor(added, tensor)
        added.optional = tensor.is_optional
        added.allow_ragged_batch = tensor.is_ragged
    for tensor in outputs:
        _set_tensor(config.output.add(), tensor)


def _set_tensor(message: Any, tensor: Tensor) -> None:
    message.name = tensor.name
    message.data_type = model_config_pb2.DataType.Value(tensor.data_type)
    message.dims.extend(tensor.dims)
    if tensor.reshape is not None:
        message.reshape.SetInParent()  # an empty one says that the scalar has no dimension
        message.reshape.shape.extend(tensor.reshape)


def _add_parameters(config: Any, values: Mapping[str, str]) -> None:
    for key, value in values.items():
        config.parameters[key].string_value = value
