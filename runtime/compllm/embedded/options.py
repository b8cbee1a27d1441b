"""What can be chosen of the embedded engine: by its owner, the Triton model or the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compllm.niceness import NICENESS

if TYPE_CHECKING:
    from compllm.embedded.runner import AdapterForm


@dataclass(frozen=True, slots=True)
class ExecutorOptions:
    """Limits of the engine, named as in TensorRT-LLM where it has them."""

    max_batch_size: int = 32  # sequences in a step
    max_num_tokens: int = 256  # tokens in a step: decodes plus prefill chunks
    max_queue_size: int = 1024  # requests waiting; more are refused
    kv_cache_tokens: int = 32 * 1024  # tokens the cache holds
    # u8 | f16 | f32; empty: f16 for an int8 engine (u8 halves the cache, and a decoding step
    # takes 11 to 45 % longer: benchmarks/engine/bench_decode.py), f32 for an fp16 one
    kv_precision: str = ""
    max_adapters: int = 32  # slots
    # Adapters as in TensorRT-LLM's LoRA cache: none is there at the start, each comes with a
    # request that brings its weights, and weights for an id that is there are not looked at.
    is_lora_cache: bool = False
    adapter_form: AdapterForm = "auto"
    is_prefix_reused: bool = True
    num_threads: int = 0  # 0: as many as there are cores
    # A streamed request's responses are so far apart at least, but for its first token and for
    # the ends of lines; 0: one a token. Each costs client and server 0.6 ms beside a decoding step.
    stream_interval_ms: float = 20.0
    # Of the Triton model's process and of the session of a server that we start: see niceness.py.
    # An Executor in a process of your own leaves that as it is.
    niceness: int = NICENESS
