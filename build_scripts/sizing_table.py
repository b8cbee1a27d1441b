"""What fits which GPU: the table of docs/GPU.md, by the arithmetic of build_trtllm.py.

    python build_scripts/sizing_table.py

Shapes are those of well-known checkpoints, settings the defaults of engines/gpu.toml. No GPU has
confirmed a number of it: weights, KV and adapters are exact, activations an estimate on the large
side.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from compllm.build_scripts.trtllm.memory import GIB, LoraNeed, engine_memory, share_out
from compllm.build_scripts.trtllm.settings import EngineSettings, GpuSettings, load_settings
from compllm.formats.shape import BaseShape

SHAPES = (
    BaseShape(30, 576, 1536, 9, 3, 64, 49152, name="SmolLM2-135M"),
    BaseShape(16, 2048, 8192, 32, 8, 64, 128256, name="Llama-3.2-1B"),
    BaseShape(28, 3072, 8192, 24, 8, 128, 128256, name="Llama-3.2-3B"),
    BaseShape(28, 3584, 18944, 28, 4, 128, 152064, name="Qwen2.5-7B"),
    BaseShape(32, 4096, 14336, 32, 8, 128, 128256, name="Llama-3.1-8B"),
    BaseShape(80, 8192, 28672, 64, 8, 128, 128256, name="Llama-3.1-70B"),
)
# Four experts of rank 16 on the attention, all of them on the GPU.
LORA = LoraNeed(("attn_q", "attn_k", "attn_v", "attn_dense"), 16, 4, 4)
_GPUS = ("h100", "a100", "l4")
_MAX_TP = 8


@dataclass(frozen=True, slots=True)
class Row:
    """The fewest GPUs of a kind that serve a shape, and what they then hold; bytes on each GPU."""

    model: str
    gpu: str
    num_gpus: int  # 0: not even the most of them do
    quantisation: str
    weights: int
    adapter: int
    kv_tokens: int
    max_seq_len: int


def rows() -> Iterator[Row]:
    for name in _GPUS:
        settings = load_settings(gpu=name)
        for shape in SHAPES:
            yield _row(shape, settings)


def render() -> str:
    """The table as Markdown."""
    lines = [
        "| GPU | base | GPUs | weights | weights, GiB each | one adapter, MiB | KV cache, tokens | "
        "sequences of 4,096 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows():
        if not row.num_gpus:
            lines.append(f"| {row.gpu} | {row.model} | more than {_MAX_TP} | | | | | |")
            continue
        kind = "float16" if row.quantisation == "none" else row.quantisation
        lines.append(
            f"| {row.gpu} | {row.model} | {row.num_gpus} | {kind} | {row.weights / GIB:.1f} | "
            f"{row.adapter / 2**20:.1f} | {row.kv_tokens:,} | {row.kv_tokens // 4096} |"
        )
    return "\n".join(lines)


def _row(shape: BaseShape, chosen: GpuSettings) -> Row:
    gpu = chosen.gpu
    tp = 1
    while tp <= _MAX_TP:
        settings: EngineSettings = replace(chosen.engine, tp=tp)
        memory = engine_memory(shape, settings, LORA)
        shares = share_out(gpu, (memory,), settings.tokens_per_block)
        if shares is not None and shape.num_heads % tp == 0:
            return Row(
                shape.name,
                gpu.label,
                tp,
                settings.quantisation,
                memory.weights,
                memory.lora_adapter,
                shares[0].kv_tokens,
                settings.max_seq_len,
            )
        tp *= 2
    return Row(shape.name, gpu.label, 0, "", 0, 0, 0, 0)


def main() -> int:
    print(render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
