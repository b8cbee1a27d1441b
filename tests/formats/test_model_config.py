"""config.json: the configs of known models pass, and no key is passed over in silence."""

from __future__ import annotations

from typing import Any

import pytest

from compllm.errors import ArtefactError
from compllm.formats.model_config import check_config, rms_norm_eps

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0.dev0",
    "use_cache": True,
    "vocab_size": 128256,
}
QWEN: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "hidden_act": "silu",
    "hidden_size": 896,
    "initializer_range": 0.02,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.43.1",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
SMOL_ONLY = {
    "is_llama_config": True,
    "rope_interleaved": False,
    "rope_scaling": None,
    "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
}
# What transformers 5 writes of them.
LLAMA_5 = {"rope_parameters": LLAMA["rope_scaling"] | {"rope_theta": 500000.0}, "dtype": "bfloat16"}
QWEN_5 = {
    "layer_types": ["full_attention"] * 24,
    "sliding_window": None,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
}


@pytest.mark.parametrize("config", [LLAMA, LLAMA | SMOL_ONLY, LLAMA | LLAMA_5, QWEN, QWEN | QWEN_5])
def test_configs_of_known_models_pass(config: dict[str, Any]) -> None:
    decoder = check_config(config)
    assert decoder.is_tied
    assert decoder.biased == (
        {"q_proj", "k_proj", "v_proj"} if config["model_type"] == "qwen2" else set()
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": None},
        {"some_new_key": None},
        {"_attn_implementation_autoset": True},
        {"hidden_act": "swish"},
        {"use_sliding_window": True, "max_window_layers": 24},
        {"use_sliding_window": True, "max_window_layers": 0},  # as long as the longest sequence
        {"rope_scaling": {"type": "linear", "factor": 2}},
        {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": 32, "truncate": False}},
    ],
)
def test_keys_that_change_nothing_or_are_computed_pass(changes: dict[str, Any]) -> None:
    check_config(QWEN | changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"hidden_act": ["silu"]}, "hidden_act is"),
        ({"some_new_key": 3}, r"the key some_new_key \(3\) is not known.*remove it"),
        ({"use_sliding_window": True, "sliding_window": 64}, "set max_position_embeddings to 64"),
        ({"layer_types": ["sliding_attention"] * 24, "sliding_window": 9}, "sliding_window is 9"),
        ({"layer_types": ["sliding_attention"] * 24, "sliding_window": None}, "window is None"),
        ({"layer_types": ["linear_attention"] * 24}, "layer_types asks for 'linear_attention'"),
        ({"layer_types": ["full_attention"]}, "not 24 names"),
        ({"use_sliding_window": "yes"}, "use_sliding_window is 'yes', not true or false"),
        ({"tie_word_embeddings": "true"}, "tie_word_embeddings is 'true'"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps is '1e-6'"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
        ({"rope_theta": "high"}, "rope_theta is 'high'"),
        ({"rope_theta": 0}, "rope_theta is 0"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', not an object"),
        ({"rope_scaling": {"type": "su", "factor": 2}}, "asks for 'su' rope"),
        ({"rope_scaling": {"type": ["yarn"]}}, "rope; supported are"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}}, "asks for 'dynamic' rope"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor of 'linear' rope is None"),
        ({"rope_scaling": {"type": "yarn", "factor": "4"}}, "rope_scaling.factor .* is '4'"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"max_position_embeddings": "long"}, "max_position_embeddings is 'long'"),
        ({"max_position_embeddings": None}, "max_position_embeddings is None"),
        ({"eos_token_id": "<|im_end|>"}, "eos_token_id is '<"),
        ({"eos_token_id": [151645, 200000]}, "expected token ids below 151936"),
        ({"architectures": "MistralForCausalLM"}, "a MistralForCausalLM"),
        ({"architectures": [["Qwen2ForCausalLM"]]}, "supported are"),
        ({"model_type": "mistral"}, "model_type is 'mistral'"),
        ({"model_type": None}, "model_type is None"),
        ({"head_dim": 65}, "head_dim is 65"),
        ({"use_mrope": True}, "use_mrope is True"),
        ({"auto_map": {"AutoModel": "own.Model"}}, "auto_map"),
        ({"quantization": {"bits": 4}}, "quantization is .* full-precision"),
        ({"quantization_config": {"bits": 4}}, "quantised already"),
    ],
)
def test_what_would_be_computed_otherwise_is_refused_by_name(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ArtefactError, match=said):
        check_config(QWEN | changes)


def test_window_of_a_llama_is_refused() -> None:
    with pytest.raises(ArtefactError, match="sliding_window is 4096"):
        check_config(LLAMA | {"sliding_window": 4096})


def test_biases_of_a_llama_are_those_that_its_config_names() -> None:
    every = check_config(LLAMA | {"attention_bias": True, "mlp_bias": True}).biased
    assert every == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert "o_proj" in check_config(LLAMA | {"attention_bias": True}).biased


def test_missing_rms_norm_eps_is_transformers_default() -> None:
    from transformers import LlamaConfig, Qwen2Config

    for kind in (LlamaConfig, Qwen2Config):
        assert rms_norm_eps({}) == kind().rms_norm_eps  # type: ignore[no-untyped-call]
