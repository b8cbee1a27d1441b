"""Checkpoints become engine weights: rounding bounds, other dtypes, other families."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from engines import generate, make_engine, random_prompts, reference
from families import FAMILIES, make_family
from helpers import rewrite_json
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from compllm.embedded.executor import Executor
from compllm.embedded.model import Weights, build_base, quantise_rows
from compllm.embedded.options import ExecutorOptions
from compllm.embedded.request import EngineRequest
from compllm.errors import ArtefactError
from compllm.formats.checkpoint import validate_checkpoint

NUM_TOKENS = 12
TIE = 1e-3  # as in test_executor.py

matrices = arrays.arrays(
    np.float32,
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=24),
    elements=st.floats(-1000, 1000, width=32),
)


@given(matrices)
def test_a_quantised_row_is_off_by_less_than_a_step(weight: np.ndarray) -> None:
    quantised, zero_point, scale = quantise_rows(weight)
    step = scale.astype(np.float32)
    restored = (quantised.astype(np.float32) - zero_point) * step
    span = np.maximum(weight.max(1, keepdims=True), 0) - np.minimum(weight.min(1, keepdims=True), 0)
    # Half a step of rounding, half for the zero point at the edge, and what the rounding of the
    # scale to half precision cuts off (most where that is subnormal, below 2^-14).
    bound = step + np.maximum(span - 255 * step, 0)
    assert (np.abs(restored - weight) <= bound * 1.001).all()


@given(matrices)
def test_zeros_stay_zeros(weight: np.ndarray) -> None:
    quantised, zero_point, _ = quantise_rows(np.where(np.abs(weight) < 500, 0, weight))
    is_zero = np.abs(weight) < 500
    assert (quantised == zero_point)[is_zero].all()


def test_bfloat16_checkpoints_are_read(tiny_checkpoint: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint, out = tmp_path / "bf16", tmp_path / "engine"
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    model.save_pretrained(checkpoint)
    out.mkdir()
    build_base(checkpoint, out, "fp16")
    shutil.copyfile(checkpoint / "config.json", out / "config.json")
    weights = Weights.load(out).arrays
    down = model.model.layers[1].mlp.down_proj.weight
    np.testing.assert_array_equal(weights["1.down.weight"], down.detach().half().numpy())
    norm = model.model.norm.weight
    np.testing.assert_array_equal(weights["norm"], norm.detach().float().numpy())


def test_tensors_that_are_not_finite_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.inf
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtefactError, match=r"layers\.1\.mlp\.up_proj\.weight .* holds NaN"):
        build_base(broken, tmp_path)


@pytest.mark.parametrize(("dtype", "value"), [("fp16", 1e5), ("int8", 1e7)])
def test_weights_beyond_half_precision_are_named(
    tiny_checkpoint: Path, tmp_path: Path, dtype: str, value: float
) -> None:
    from safetensors.numpy import load_file, save_file

    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4:6] = value, -value
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    said = r"layers\.1\.mlp\.up_proj\.weight \(in model\.safetensors\) reaches [12]e\+0[57], beyond"
    with pytest.raises(ArtefactError, match=said):
        build_base(copy, tmp_path, dtype)


def test_a_rope_that_is_not_served_is_named_before_anything_is_read(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    rewrite_json(copy / "config.json", {"rope_parameters": {"rope_type": "su"}})
    with pytest.raises(ArtefactError, match="asks for 'su' rope"):
        build_base(copy, tmp_path)


@pytest.fixture(scope="module")
def llama_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with every bias, Llama 3's rope and no rms_norm_eps."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 10000.0,
    }
    tiny = json.loads((tiny_checkpoint / "config.json").read_text())
    tiny |= {"attention_bias": True, "mlp_bias": True, "rope_parameters": rope}
    directory = tmp_path_factory.mktemp("checkpoints") / "biased-llama"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**tiny))  # type: ignore[no-untyped-call]
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                torch.nn.init.normal_(parameter)
    model.save_pretrained(directory)
    config = json.loads((directory / "config.json").read_text())
    del config["rms_norm_eps"]
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_checkpoint / name, directory / name)
    return directory


@pytest.fixture(scope="module")
def qwen_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of 2 layers: biases on q, k and v, an output matrix of its own."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tiny = json.loads((tiny_checkpoint / "config.json").read_text())
    kept = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")
    config = Qwen2Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        initializer_range=0.2,
        **{key: tiny[key] for key in kept},
    )
    directory = tmp_path_factory.mktemp("checkpoints") / "tiny-qwen2"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(config)  # type: ignore[no-untyped-call]
        for layer in model.model.layers:
            for projection in ("q_proj", "k_proj", "v_proj"):
                torch.nn.init.normal_(getattr(layer.self_attn, projection).bias)
    model.save_pretrained(directory)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_checkpoint / name, directory / name)
    return directory


@pytest.fixture(scope="module", params=list(FAMILIES))
def family_checkpoint(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return make_family(request.param, tiny_checkpoint, tmp_path_factory.mktemp("family"))


@pytest.mark.parametrize("form", ["op", "mask"])
def test_greedy_tokens_of_each_family_are_those_of_transformers(
    form: str, family_checkpoint: Path, tmp_path: Path
) -> None:
    check_against_transformers(family_checkpoint, form, tmp_path)


@pytest.mark.parametrize("form", ["op", "mask"])
@pytest.mark.parametrize("family", ["qwen_checkpoint", "llama_checkpoint"])
def test_greedy_tokens_are_those_of_transformers(
    form: str, family: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    check_against_transformers(request.getfixturevalue(family), form, tmp_path)


def check_against_transformers(checkpoint: Path, form: str, tmp_path: Path) -> None:
    validate_checkpoint(checkpoint)
    prompts = random_prompts(40000, 6, seed=3)
    expected = reference(checkpoint, None, prompts, NUM_TOKENS)
    engine_dir = make_engine(checkpoint, tmp_path / "e", "fp16", {})
    engine = Executor(engine_dir, ExecutorOptions(kv_cache_tokens=4096, adapter_form=form))  # type: ignore[arg-type]
    try:
        results = generate(engine, [EngineRequest(prompt, NUM_TOKENS) for prompt in prompts])
    finally:
        engine.close()
    for answer, result in zip(expected, results, strict=True):
        place = answer.parting(result.token_ids)
        assert place is None or answer.margins[place] < TIE
