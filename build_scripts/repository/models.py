"""The manifest of built engines -> the core models that serve them.

The build has placed every engine on its GPUs and shared the memory out; here its numbers become the
settings of a Triton model.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from compllm.build_scripts.repository.core import CoreModel, GuidedDecoding, LoraCache
from compllm.build_scripts.trtllm.record import TOKENIZER, EngineEntry, TrtManifest
from compllm.errors import ArtefactError

# Where engines share a GPU the fraction only must not be what binds: it is of the memory that is
# free when a model loads, so it would give the first to load most of it. Their tokens are fixed.
_SHARED_FRACTION = 0.95


def core_models(
    manifest: TrtManifest, engines: Path, guided: GuidedDecoding | None
) -> tuple[CoreModel, ...]:
    """A model for each engine, the base's first. `engines`: the directory of the manifest, where
    the server sees it. Raises ArtefactError."""
    names = Counter(entry.name for entry in manifest.engines)
    if twice := [name for name, count in names.items() if count > 1]:
        raise ArtefactError(f"{engines}: two engines are named {twice[0]}: build them again")
    on_gpu = Counter(gpu for entry in manifest.engines for gpu in entry.devices)
    return tuple(
        _core_model(
            entry,
            manifest,
            engines,
            guided,
            is_alone=all(on_gpu[gpu] == 1 for gpu in entry.devices),
        )
        for entry in manifest.engines
    )


def _core_model(
    entry: EngineEntry,
    manifest: TrtManifest,
    engines: Path,
    guided: GuidedDecoding | None,
    *,
    is_alone: bool,
) -> CoreModel:
    settings = entry.settings
    if settings["kv_cache_type"] != "paged":
        raise ArtefactError(
            f"engine {entry.name} has a {settings['kv_cache_type']} KV cache: requests are batched "
            "in flight, which needs kv_cache_type = 'paged'"
        )
    if entry.kv_tokens < settings["max_seq_len"]:
        raise ArtefactError(
            f"engine {entry.name}: its share of the KV cache is {entry.kv_tokens} tokens, less "
            f"than one sequence of max_seq_len {settings['max_seq_len']}: lower that, or use more "
            "GPUs"
        )
    return CoreModel(
        name=entry.name,
        engine_dir=engines / entry.name,
        tokenizer_dir=engines / TOKENIZER,
        max_batch_size=settings["max_batch_size"],
        gpu_ids=entry.devices,
        kv_fraction=entry.kv_fraction if is_alone else _SHARED_FRACTION,
        kv_tokens=None if is_alone else entry.kv_tokens,
        has_cuda_graphs=settings["cuda_graphs"] and not entry.max_lora_rank,
        has_paged_context=settings["paged_context_fmha"],
        lora=_lora(entry, tuple(each.task_id for each in manifest.adapters)),
        guided=guided,
    )


def _lora(entry: EngineEntry, adapter_ids: tuple[int, ...]) -> LoraCache | None:
    if not entry.max_lora_rank:
        return None
    return LoraCache(
        max_rank=entry.max_lora_rank,
        gpu_fraction=entry.lora_fraction,
        host_bytes=entry.memory["lora_host"],
        adapter_ids=adapter_ids,
    )
