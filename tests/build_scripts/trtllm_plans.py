"""Plans without files, for tests of what comes after the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from compllm.build_scripts.trtllm.legacy_form import Rope
from compllm.build_scripts.trtllm.memory import LoraNeed, Share, engine_memory
from compllm.build_scripts.trtllm.plan import PlannedAdapter, PlannedEngine, Source
from compllm.build_scripts.trtllm.settings import EngineSettings, Gpu
from compllm.formats.adapters import Adapter
from compllm.formats.shape import BaseShape

LLAMA_8B = BaseShape(32, 4096, 14336, 32, 8, 128, 128256, "llama-8b")
SMOL = BaseShape(30, 576, 1536, 9, 3, 64, 49152, "smol")
H100 = Gpu("h100", "NVIDIA H100 80GB", "9.0", 79.6)
A100 = Gpu("a100", "NVIDIA A100 80GB", "8.0", 79.3)
L4 = Gpu("l4", "NVIDIA L4", "8.9", 22.5)
QKV = ("attn_q", "attn_k", "attn_v")


def planned_engine(
    *,
    is_qwen: bool = False,
    is_merged: bool = False,
    lora: LoraNeed | None = None,
    shape: BaseShape = LLAMA_8B,
    **settings: Any,
) -> PlannedEngine:
    """An engine of any settings, buildable or not."""
    own = EngineSettings(**settings)
    source = Source(Path("/models/base"), shape, is_qwen, 131072, Rope(500000.0), "key")
    adapter = PlannedAdapter(Adapter("chem", 4, {}, "0" * 64), Path("/adapters/chem"))
    merged = adapter if is_merged else None
    share = Share(engine_memory(shape, own, lora), 4096, 0.9, 0.5)
    devices = tuple(range(own.world_size))
    return PlannedEngine("tensorrt_llm", "base", source, merged, lora, own, devices, share)
