"""What TensorRT-LLM 1.2 would refuse late or compute wrongly, refused early and by name."""

from __future__ import annotations

from compllm.build_scripts.trtllm.settings import EngineSettings, Gpu
from compllm.errors import ArtefactError
from compllm.formats.shape import BaseShape

_AWQ_BLOCK = 128  # weights that share a scale


def check_rules(shape: BaseShape, settings: EngineSettings, gpu: Gpu, num_gpus: int) -> None:
    """Raises ArtefactError unless these settings can build a model of this shape for this GPU."""
    _check_parallel(shape, settings, num_gpus)
    _check_precision(shape, settings, gpu)
    _check_kv(settings)


def warnings(settings: EngineSettings, has_adapters: bool) -> tuple[str, ...]:
    """What TensorRT-LLM builds and serves, but may answer wrongly."""
    if settings.tp > 1 and has_adapters:
        return (
            f"engine.tp = {settings.tp} with adapters: wrong answers are reported upstream "
            "(NVIDIA/TensorRT-LLM#2634, open): compare with smoke_triton.py --reference, or give "
            "each expert an engine of its own (topology = 'per-expert')",
        )
    return ()


def is_calibrated(settings: EngineSettings) -> bool:
    """These scales are measured on data, by quantize.py and not by convert_checkpoint.py."""
    return settings.quantisation in ("fp8", "int4_awq") or settings.kv_cache_dtype != "auto"


def _check_parallel(shape: BaseShape, settings: EngineSettings, num_gpus: int) -> None:
    if settings.world_size > num_gpus:
        raise ArtefactError(
            f"engine.tp {settings.tp} x engine.pp {settings.pp} needs {settings.world_size} GPUs, "
            f"num_gpus is {num_gpus}"
        )
    for number, what in (
        (shape.num_heads, "attention heads"),
        (shape.intermediate, "MLP rows"),
    ):
        if number % settings.tp:
            raise ArtefactError(f"engine.tp = {settings.tp} does not divide the {number} {what}")
    if shape.num_kv_heads % settings.tp and settings.tp % shape.num_kv_heads:
        raise ArtefactError(
            f"engine.tp = {settings.tp}: {shape.num_kv_heads} key-value heads cannot be shared out"
        )
    if shape.num_layers % settings.pp:
        raise ArtefactError(
            f"engine.pp = {settings.pp} does not divide the {shape.num_layers} layers"
        )


def _check_precision(shape: BaseShape, settings: EngineSettings, gpu: Gpu) -> None:
    wants_fp8 = settings.quantisation == "fp8" or settings.kv_cache_dtype == "fp8"
    if wants_fp8 and not gpu.has_fp8:
        raise ArtefactError(
            f"{gpu.label} (compute capability {gpu.compute_capability}) has no FP8: "
            "use int8 or int4_awq weights and kv_cache_dtype 'auto'"
        )
    if settings.quantisation == "int4_awq":
        for number, what in (
            (shape.hidden, "hidden size"),
            (shape.intermediate // settings.tp, "MLP rows of one GPU"),
        ):
            if number % _AWQ_BLOCK:
                raise ArtefactError(
                    f"quantisation int4_awq needs a {what} that is a multiple of {_AWQ_BLOCK}, "
                    f"it is {number}: use int8 or int4"
                )


def _check_kv(settings: EngineSettings) -> None:
    block = settings.tokens_per_block
    if block & (block - 1):
        raise ArtefactError(f"engine.tokens_per_block = {block}: expected a power of two")
    if not settings.paged_context_fmha:
        return
    if settings.kv_cache_type != "paged":
        raise ArtefactError(
            f"kv_cache_type {settings.kv_cache_type!r} goes without paged_context_fmha: "
            "set engine.paged_context_fmha = false"
        )
    if settings.kv_cache_dtype == "int8":
        raise ArtefactError(
            "kv_cache_dtype 'int8' goes without paged_context_fmha, which then loses prefix reuse: "
            "set engine.paged_context_fmha = false, or use kv_cache_dtype 'fp8'"
        )
    if settings.kv_cache_dtype == "fp8" and settings.quantisation != "fp8":
        raise ArtefactError(
            "kv_cache_dtype 'fp8' with paged_context_fmha needs quantisation 'fp8' too: "
            "set it, or engine.paged_context_fmha = false"
        )
