"""Memory needed on one GPU, computed before a build: weights, KV cache, LoRA cache, activations.

Weights, KV cache and LoRA cache are computed exactly from shapes. Activations and the runtime's own
memory are conservative estimates. If the engines do not fit, the error names changes that would
make them fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from compllm.build_scripts.trtllm.rules import check_rules
from compllm.build_scripts.trtllm.settings import EngineSettings, Gpu, Quantisation
from compllm.errors import ArtefactError
from compllm.formats.shape import BaseShape

GIB = 2**30
USABLE = 0.95  # of a GPU's memory: the rest is for fragmentation and other programs
_HALF = 2  # bytes of float16 and bfloat16
_RUNTIME = int(1.2 * GIB)  # of one process: CUDA context, cuBLAS, plug-in workspaces
_NCCL = int(0.3 * GIB)  # added where several GPUs share an engine
_AWQ_BLOCK = 128
_LINEAR_BYTES: dict[Quantisation, float] = {
    "none": _HALF,
    "fp8": 1,
    "int8": 1,
    "int4": 0.5,
    "int4_awq": 0.5 + _HALF / _AWQ_BLOCK,
}
_COLUMN = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # tp splits their outputs
_TRTLLM_TO_SIDE = {
    "attn_q": "q_proj",
    "attn_k": "k_proj",
    "attn_v": "v_proj",
    "attn_dense": "o_proj",
    "mlp_h_to_4h": "gate_proj",
    "mlp_4h_to_h": "down_proj",
    "mlp_gate": "up_proj",
}


@dataclass(frozen=True, slots=True)
class LoraNeed:
    """The adapters that the engine must be able to hold."""

    modules: tuple[str, ...]  # TensorRT-LLM's names
    max_rank: int
    num_adapters: int  # in the catalogue
    gpu_adapters: int  # on the GPU at once


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Bytes of one engine on the fullest of its GPUs."""

    weights: int
    activations: int
    runtime: int
    kv_per_token: int
    kv_tokens: int  # tokens that the KV cache must hold
    lora_adapter: int  # one adapter of the largest rank with every module
    lora_gpu: int  # LoRA cache on the GPU, in whole pages
    lora_host: int  # LoRA cache in the host's memory

    @property
    def kv(self) -> int:
        return self.kv_per_token * self.kv_tokens

    @property
    def fixed(self) -> int:
        """All but the KV cache."""
        return self.weights + self.activations + self.runtime + self.lora_gpu

    @property
    def total(self) -> int:
        return self.fixed + self.kv


@dataclass(frozen=True, slots=True)
class Share:
    """An engine's share of its GPU: the numbers for the configuration of its Triton model."""

    memory: EngineMemory
    kv_tokens: int  # max_tokens_in_paged_kv_cache, in whole blocks
    kv_fraction: float  # kv_cache_free_gpu_mem_fraction, for an engine alone on its GPUs
    lora_fraction: float  # lora_cache_gpu_memory_fraction, of what is free before the KV cache


def engine_memory(
    shape: BaseShape, settings: EngineSettings, lora: LoraNeed | None
) -> EngineMemory:
    """The memory of one engine, computed as the module's docstring says."""
    layers = shape.num_layers // settings.pp
    block = settings.tokens_per_block
    sequence = -(-settings.max_seq_len // block) * block
    # Without pages every request slot reserves the longest sequence from the start.
    sequences = (
        settings.full_sequences if settings.kv_cache_type == "paged" else settings.max_batch_size
    )
    adapter = lora_adapter_bytes(shape, settings, lora) if lora else 0
    pages = lora_pages(shape, settings, lora) if lora else LoraPages(0, 0)
    return EngineMemory(
        weights=weight_bytes(shape, settings),
        activations=_activation_bytes(shape, settings),
        runtime=_RUNTIME + (_NCCL if settings.world_size > 1 else 0),
        kv_per_token=2 * layers * _kv_heads(shape, settings) * shape.head_dim * kv_bytes(settings),
        kv_tokens=sequences * sequence,
        lora_adapter=adapter,
        # One adapter more than asked for: a new adapter is loaded before the old one is freed.
        lora_gpu=pages.adapter_bytes * (lora.gpu_adapters + 1) if lora else 0,
        lora_host=max(GIB, pages.adapter_bytes * (lora.num_adapters + 1)) if lora else 0,
    )


def weight_bytes(shape: BaseShape, settings: EngineSettings) -> int:
    """Bytes of the weights on the fullest rank. Embeddings, head and norms stay in half precision.
    A tied head counts twice, because the conversion writes it twice."""
    per_linear = _LINEAR_BYTES[settings.quantisation]
    kv_out = _kv_heads(shape, settings) * shape.head_dim
    linear = scales = 0
    for module, (num_out, num_in) in shape.module_shapes().items():
        num_elements = num_out * num_in // settings.tp
        if module in ("k_proj", "v_proj"):  # repeated if KV heads are fewer than GPUs
            num_elements = kv_out * num_in
        linear += num_elements
        scales += num_out * _HALF  # per channel; a bias of Qwen2 is as large
    layer = linear * per_linear + 2 * scales + 2 * shape.hidden * _HALF
    vocab = -(-shape.vocab // settings.tp)
    embedding, head = shape.vocab * shape.hidden * _HALF, vocab * shape.hidden * _HALF
    ends = embedding + head if settings.pp == 1 else max(embedding, head)
    return int(layer * (shape.num_layers // settings.pp) + ends + shape.hidden * _HALF)


def lora_adapter_bytes(shape: BaseShape, settings: EngineSettings, lora: LoraNeed) -> int:
    """Bytes of one adapter of the largest rank on every enabled module."""
    width = sum(_lora_widths(shape, settings, lora))
    return lora.max_rank * (shape.num_layers // settings.pp) * width * _HALF


@dataclass(frozen=True, slots=True)
class LoraPages:
    """The pages of TensorRT-LLM's LoRA cache."""

    page_bytes: int
    num_pages: int  # pages of one adapter of the largest rank with every module

    @property
    def adapter_bytes(self) -> int:
        return self.page_bytes * self.num_pages


def lora_pages(shape: BaseShape, settings: EngineSettings, lora: LoraNeed) -> LoraPages:
    """The page size and the pages of one adapter, by the rules of TensorRT-LLM.

    `PeftCacheManager::getPageManagerConfig` sizes a page, `LoraCache::determineNumPages` fills it.
    A slot is as wide as the narrowest module (inputs + outputs). A page has room for an adapter of
    the optimal rank. Each module takes whole slots and never spans two pages.
    """
    widths, layers = _lora_widths(shape, settings, lora), shape.num_layers // settings.pp
    slot = min(widths)
    slots_of_rank_1 = sum(-(-width // slot) for width in widths)
    slots_per_page = max(
        optimal_adapter_size(lora.max_rank) * slots_of_rank_1 * layers,
        -(-lora.max_rank * max(widths) // slot),
    )
    num_pages, taken = 1, 0
    for width in widths * layers:
        needed = -(-lora.max_rank * width // slot)
        if taken + needed > slots_per_page:
            num_pages, taken = num_pages + 1, 0
        taken += needed
    return LoraPages(slots_per_page * slot * _HALF, num_pages)


def optimal_adapter_size(max_rank: int) -> int:
    """lora_cache_optimal_adapter_size: the rank for which a page of the cache is sized."""
    return min(8, max_rank)


def _lora_widths(shape: BaseShape, settings: EngineSettings, lora: LoraNeed) -> tuple[int, ...]:
    """Inputs + outputs of each enabled module on one GPU."""
    sizes, widths = shape.module_shapes(), []
    for name in lora.modules:
        module = _TRTLLM_TO_SIDE[name]
        num_out, num_in = sizes[module]
        if module in _COLUMN:
            widths.append(num_in + num_out // settings.tp)
        else:
            widths.append(num_in // settings.tp + num_out)
    return tuple(widths)


def kv_bytes(settings: EngineSettings) -> int:
    """Bytes of one number in the KV cache."""
    return _HALF if settings.kv_cache_dtype == "auto" else 1


def _kv_heads(shape: BaseShape, settings: EngineSettings) -> int:
    return max(1, shape.num_kv_heads // settings.tp)


def _activation_bytes(shape: BaseShape, settings: EngineSettings) -> int:
    """An estimate: the widest layer's inputs and outputs for the tokens of one step, and the
    sampler's float32 logits in three copies."""
    sizes = shape.module_shapes()
    attention = sizes["q_proj"][0] + 2 * sizes["k_proj"][0]
    width = 4 * shape.hidden + (attention + 3 * shape.intermediate) // settings.tp
    logits = settings.max_batch_size * shape.vocab * 4 * 3
    return settings.max_num_tokens * width * _HALF + logits


def share_out(gpu: Gpu, memories: Sequence[EngineMemory], block: int) -> tuple[Share, ...] | None:
    """Divide the memory of one GPU among its engines; None if they do not fit.

    The order is the runtime's: first weights and buffers, then the LoRA cache as a fraction of the
    free memory, then the KV cache. The KV caches share the rest, with the same number of bytes for
    each engine.
    """
    total = int(gpu.memory_gib * GIB)
    pool = _pool(total, memories)
    if pool < max(memory.kv for memory in memories):
        return None
    shares = []
    for memory in memories:
        tokens = pool // memory.kv_per_token // block * block
        kv = tokens * memory.kv_per_token
        # Rounded so that neither cache takes memory of the other.
        lora = math.ceil(memory.lora_gpu / _least_free(total, memories, memory, pool) * 1e4) / 1e4
        rest = _loaded_free(total, memory) * (1 - lora)
        shares.append(Share(memory, tokens, math.floor(kv / rest * 1e4) / 1e4, lora))
    return tuple(shares)


def _pool(total: int, memories: Sequence[EngineMemory]) -> int:
    """Bytes of KV cache that each of the engines can have; negative if they do not fit.

    Triton loads the models of a GPU in any order. An engine's LoRA cache is a fraction of the
    memory that is free when the engine loads. The fraction is enough for an engine that loads last;
    the cache is larger for one that loads first.
    """
    usable = int(total * USABLE) - sum(memory.fixed - memory.lora_gpu for memory in memories)

    def fits(pool: int) -> bool:
        lora = 0.0
        for memory in memories:
            least = _least_free(total, memories, memory, pool)
            if least <= 0:
                return False
            lora += memory.lora_gpu / least * _loaded_free(total, memory)
        return len(memories) * pool + lora <= usable

    low, high = 0, max(usable, 0)
    if not fits(low):
        return -1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _loaded_free(total: int, memory: EngineMemory) -> int:
    """Free bytes after this engine has loaded first on the GPU, before its caches."""
    return total - (memory.fixed - memory.lora_gpu)


def _least_free(
    total: int, memories: Sequence[EngineMemory], memory: EngineMemory, pool: int
) -> int:
    """As `_loaded_free`, but after all other engines, each with `pool` bytes of KV cache."""
    others = sum(each.fixed for each in memories) - memory.fixed
    return _loaded_free(total, memory) - others - (len(memories) - 1) * pool


@dataclass(frozen=True, slots=True)
class Load:
    """The engines that one GPU has to hold, all of the same settings.

    is_fp8: engines without adapters are fp8 instead.
    """

    settings: EngineSettings
    engines: tuple[tuple[BaseShape, LoraNeed | None], ...]
    is_fp8: bool = False

    def memories(self) -> tuple[EngineMemory, ...]:
        fp8 = replace(self.settings, quantisation="fp8") if self.is_fp8 else self.settings
        return tuple(
            engine_memory(shape, self.settings if lora else fp8, lora)
            for shape, lora in self.engines
        )

    def fits(self, gpu: Gpu) -> bool:
        return share_out(gpu, self.memories(), self.settings.tokens_per_block) is not None


def fit(load: Load, gpu: Gpu, num_gpus: int, gpus: Sequence[Gpu]) -> tuple[Share, ...]:
    """The shares of the engines on one GPU. Raises ArtefactError, which names what would fit.

    num_gpus: GPUs that may be used; gpus: the GPU kinds that may be suggested.
    """
    memories = load.memories()
    shares = share_out(gpu, memories, load.settings.tokens_per_block)
    if shares is not None:
        return shares
    parts = {
        "weights": sum(memory.weights for memory in memories),
        f"KV cache of {memories[0].kv_tokens} tokens": sum(memory.kv for memory in memories),
        "LoRA cache": sum(memory.lora_gpu for memory in memories),
        "activations": sum(memory.activations for memory in memories),
        "runtime": sum(memory.runtime for memory in memories),
    }
    told = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
    many = f"{len(memories)} engines" if len(memories) > 1 else "the engine"
    ways = list(_ways(load, gpu, num_gpus, gpus))
    remedy = (
        "set " + ", or ".join(ways[:4]) if ways else "use GPUs with more memory, or a smaller base"
    )
    raise ArtefactError(
        f"{many} cannot fit {gpu.label}: {_gib(sum(parts.values()))} GiB needed ({told}), "
        f"{_gib(int(gpu.memory_gib * GIB * USABLE))} usable: {remedy}"
    )


def _ways(load: Load, gpu: Gpu, num_gpus: int, gpus: Sequence[Gpu]) -> Iterator[str]:
    """Single changes that make the engines fit: of each kind the mildest."""
    told: set[str] = set()
    for key, value in _milder(load.settings, gpu, num_gpus):
        changed = replace(load.settings, **{key: value})
        if key not in told and _is_buildable(load, changed, gpu, num_gpus):
            told.add(key)
            yield f"engine.{key} = {value!r}"
    fewer = tuple((shape, lora and replace(lora, gpu_adapters=1)) for shape, lora in load.engines)
    if replace(load, engines=fewer).fits(gpu):
        yield "lora.gpu_adapters = 1"
    yield from (f"gpu = {other.name!r}" for other in gpus if load.fits(other))


def _is_buildable(load: Load, settings: EngineSettings, gpu: Gpu, num_gpus: int) -> bool:
    try:
        for shape, _ in load.engines:
            check_rules(shape, settings, gpu, num_gpus)
    except ArtefactError:
        return False
    # A quantisation that the user sets holds for every engine.
    is_fp8 = load.is_fp8 and settings.quantisation == load.settings.quantisation
    return replace(load, settings=settings, is_fp8=is_fp8).fits(gpu)


def _milder(settings: EngineSettings, gpu: Gpu, num_gpus: int) -> Iterator[tuple[str, Any]]:
    kinds: tuple[Quantisation, ...] = ("fp8", "int8", "int4_awq")
    now = _LINEAR_BYTES[settings.quantisation]
    yield from (("quantisation", kind) for kind in kinds if _LINEAR_BYTES[kind] < now)
    for key, low in (("full_sequences", 1), ("max_seq_len", 512), ("max_batch_size", 8)):
        value = getattr(settings, key) // 2
        while value >= low:
            yield key, value
            value //= 2
    tp = settings.tp * 2
    while tp * settings.pp <= num_gpus:
        yield "tp", tp
        tp *= 2


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.1f}"
