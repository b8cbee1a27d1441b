"""The memory of one GPU: known figures, laws that any shape keeps, and refusals that help."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trtllm_plans import A100, H100, L4, LLAMA_8B, QKV, SMOL

from compllm.build_scripts.trtllm.memory import (
    GIB,
    Load,
    LoraNeed,
    Share,
    engine_memory,
    fit,
    lora_adapter_bytes,
    lora_pages,
    share_out,
    weight_bytes,
)
from compllm.build_scripts.trtllm.settings import EngineSettings, Gpu
from compllm.errors import ArtefactError
from compllm.formats.shape import BaseShape

GPUS = (H100, A100, L4)


def test_weights_of_known_models() -> None:
    # 8.03e9 parameters of Llama 3 8B; SmolLM2's 134.5e6 and its tied head once more.
    assert weight_bytes(LLAMA_8B, EngineSettings()) == pytest.approx(8.03e9 * 2, rel=1e-3)
    smol = (134_515_008 + 49152 * 576) * 2
    assert weight_bytes(SMOL, EngineSettings()) == pytest.approx(smol, rel=2e-3)
    linear = 6.98e9  # of Llama 3 8B; embedding and head are 1.05e9 more
    for kind, size in (("fp8", 1.0), ("int8", 1.0), ("int4", 0.5), ("int4_awq", 0.516)):
        expected = linear * size + 1.05e9 * 2
        settings = EngineSettings(quantisation=kind)  # type: ignore[arg-type]
        assert weight_bytes(LLAMA_8B, settings) == pytest.approx(expected, rel=5e-3)


def test_adapter_of_upstreams_own_example() -> None:
    need = LoraNeed(QKV, 64, 1, 1)
    assert lora_adapter_bytes(LLAMA_8B, EngineSettings(), need) == 64 * 32 * (8192 + 5120 * 2) * 2


def test_kv_of_a_token() -> None:
    def of(**settings: Any) -> int:
        return engine_memory(LLAMA_8B, EngineSettings(**settings), None).kv_per_token

    assert of() == 2 * 32 * 8 * 128 * 2
    assert of(kv_cache_dtype="fp8") == of() // 2
    assert of(tp=4, pp=2) == of() // 8
    assert of(tp=16) == of() // 8  # eight heads, each on two GPUs


def test_continuous_cache_holds_every_slot_at_full_length() -> None:
    settings = EngineSettings(max_batch_size=16, max_seq_len=1000, kv_cache_type="continuous")
    assert engine_memory(SMOL, settings, None).kv_tokens == 16 * 1024


shapes = st.builds(
    lambda layers, heads, group, dim, inter, vocab: BaseShape(
        layers * 4, heads * group * dim, inter * 128, heads * group, heads, dim, vocab
    ),
    st.integers(1, 20),
    st.integers(1, 8),
    st.integers(1, 8),
    st.sampled_from([16, 64, 128]),
    st.integers(1, 100),
    st.integers(1000, 150000),
)


@given(shapes, st.sampled_from([2, 4]))
def test_more_gpus_never_need_more_each(shape: BaseShape, number: int) -> None:
    need = LoraNeed((*QKV, "attn_dense", "mlp_4h_to_h"), 8, 4, 4)
    alone = engine_memory(shape, EngineSettings(), need)
    for settings in (EngineSettings(tp=number), EngineSettings(pp=number)):
        memory = engine_memory(shape, settings, need)
        assert memory.weights <= alone.weights
        assert memory.kv <= alone.kv
        assert memory.lora_adapter <= alone.lora_adapter


@given(shapes, st.floats(4, 200), st.integers(1, 4))
def test_shares_stay_within_the_gpu(shape: BaseShape, memory_gib: float, number: int) -> None:
    gpu = Gpu("x", "X", "9.0", memory_gib)
    need = LoraNeed(QKV, 16, 4, 2)
    memories = [engine_memory(shape, EngineSettings(), need)] * number
    shares = share_out(gpu, memories, 32)
    if shares is None:
        return
    used = sum(each.memory.fixed + each.kv_tokens * each.memory.kv_per_token for each in shares)
    assert used <= gpu.memory_gib * GIB * 0.95
    for each in shares:
        assert each.kv_tokens % 32 == 0
        assert each.kv_tokens >= each.memory.kv_tokens
        assert 0 < each.kv_fraction < 1
        assert 0 < each.lora_fraction < 1


def served(share: Share, free: float) -> tuple[float, float]:
    """Bytes of LoRA cache and KV cache as TensorRT-LLM 1.2 takes them of `free`: adapters first."""
    lora = share.lora_fraction * free
    return lora, share.kv_fraction * (free - lora)


def test_caches_take_what_the_plan_says_in_the_order_of_the_runtime() -> None:
    """A fraction of what the KV cache leaves made the LoRA cache 25.7 GiB instead of 2.8."""
    modules = (*QKV, "attn_dense", "mlp_h_to_4h", "mlp_4h_to_h", "mlp_gate")
    for need, expected in (
        (LoraNeed((*QKV, "attn_dense"), 64, 8, 8), 1.2),
        (LoraNeed(modules, 64, 8, 8), 3.3),
    ):
        (share,) = fit(Load(EngineSettings(), ((LLAMA_8B, need),)), H100, 1, GPUS)
        free = H100.memory_gib * GIB - (share.memory.fixed - share.memory.lora_gpu)
        lora, kv = served(share, free)
        assert lora == pytest.approx(share.memory.lora_gpu, rel=0.01)
        assert lora / GIB == pytest.approx(expected, abs=0.2)
        assert kv == pytest.approx(share.kv_tokens * share.memory.kv_per_token, rel=2e-3)
        assert share.kv_tokens > 430_000


def test_a_page_of_the_lora_cache_is_one_adapter_of_the_optimal_rank() -> None:
    """Upstream's slots are as wide as k and v (4096 + 1024); q (4096 + 4096) takes two of them."""
    pages = lora_pages(LLAMA_8B, EngineSettings(), LoraNeed(QKV, 8, 1, 1))
    assert (pages.page_bytes, pages.num_pages) == (8 * 4 * 32 * 5120 * 2, 1)
    wide = lora_pages(LLAMA_8B, EngineSettings(), LoraNeed(QKV, 64, 1, 1))
    assert wide.page_bytes == pages.page_bytes
    # 64 x 8192 numbers in slots of 5120 are 103, with k and v 231 a layer; 1024 fit a page.
    assert wide.num_pages == 8
    exact = lora_adapter_bytes(LLAMA_8B, EngineSettings(), LoraNeed(QKV, 64, 1, 1))
    assert exact <= wide.adapter_bytes <= 1.3 * exact


@given(shapes, st.sampled_from([1, 8, 16, 64]), st.integers(1, 6))
def test_the_lora_cache_always_holds_an_adapter_more_than_asked_for(
    shape: BaseShape, rank: int, number: int
) -> None:
    need = LoraNeed((*QKV, "attn_dense", "mlp_4h_to_h"), rank, number, number)
    memory = engine_memory(shape, EngineSettings(), need)
    assert memory.lora_gpu >= (number + 1) * memory.lora_adapter
    assert memory.lora_host >= (number + 1) * memory.lora_adapter


def test_engines_on_one_gpu_have_their_caches_in_any_order_of_loading() -> None:
    need = LoraNeed((*QKV, "attn_dense"), 16, 4, 4)
    small = replace(LLAMA_8B, num_layers=8)
    shares = fit(
        Load(EngineSettings(), ((small, need), (small, None), (small, None))), H100, 1, GPUS
    )
    total = H100.memory_gib * GIB
    first, others = shares[0], shares[1:]
    fixed = first.memory.fixed - first.memory.lora_gpu
    kv = sum(each.kv_tokens * each.memory.kv_per_token for each in shares)
    loaded = sum(each.memory.fixed for each in others)
    last = total - fixed - loaded - sum(e.kv_tokens * e.memory.kv_per_token for e in others)
    assert first.lora_fraction * last >= first.memory.lora_gpu
    assert first.lora_fraction * (total - fixed) + fixed + loaded + kv <= total * 0.951


def refusal(load: Load, gpu: Gpu, num_gpus: int = 1) -> str:
    with pytest.raises(ArtefactError) as caught:
        fit(load, gpu, num_gpus, GPUS)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusal_tells_the_parts_and_what_would_fit() -> None:
    load = Load(EngineSettings(full_sequences=16), ((LLAMA_8B, None),))
    said = refusal(load, L4)
    assert said.startswith("the engine cannot fit NVIDIA L4: ")
    assert "weights 15.0, KV cache of 65536 tokens 8.0" in said
    assert "engine.quantisation = 'fp8'" in said
    assert "engine.full_sequences = 8" in said
    for kind in ("fp8", "int8"):
        fit(replace(load, settings=replace(load.settings, quantisation=kind)), L4, 1, GPUS)
    fit(replace(load, settings=replace(load.settings, full_sequences=8)), L4, 1, GPUS)


def test_suggestions_can_be_built() -> None:
    """No FP8 on an A100, no AWQ blocks in 576 columns, no more GPUs than there are."""
    load = Load(EngineSettings(), tuple((LLAMA_8B, None) for _ in range(5)))
    said = refusal(load, A100)
    assert said.startswith("5 engines cannot fit")
    assert "fp8" not in said
    assert "engine.quantisation = 'int8'" in said
    small = Gpu("small", "Small", "8.0", 2.0)
    assert "awq" not in refusal(Load(EngineSettings(), ((SMOL, None),)), small)
    large = replace(LLAMA_8B, num_layers=160)
    assert "engine.tp" not in refusal(Load(EngineSettings(), ((large, None),)), A100)
    assert "engine.tp = 2" in refusal(Load(EngineSettings(), ((large, None),)), H100, 2)


def test_nothing_to_suggest_is_said_too() -> None:
    huge = replace(LLAMA_8B, num_layers=10_000)
    assert refusal(Load(EngineSettings(), ((huge, None),)), L4).endswith(
        "use GPUs with more memory, or a smaller base"
    )
