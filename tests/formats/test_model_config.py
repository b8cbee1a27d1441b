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
QWEN3 = {  # of Qwen3-0.6B
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MISTRAL = {  # of Mistral-7B-Instruct-v0.3
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 1000000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "vocab_size": 32768,
}
SMOLLM3 = {  # of SmolLM3-3B
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
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
        ({"architectures": "MixtralForCausalLM"}, "a MixtralForCausalLM"),
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


def test_a_qwen3_norms_its_heads_whose_size_has_a_default() -> None:
    from transformers import Qwen3Config

    decoder = check_config(QWEN3)
    assert decoder.has_head_norms
    assert decoder.is_tied
    assert decoder.biased == set()
    unnamed = {key: value for key, value in QWEN3.items() if key != "head_dim"}
    assert check_config(unnamed).shape.head_dim == Qwen3Config().head_dim  # type: ignore[no-untyped-call]
    assert check_config(QWEN3 | {"attention_bias": True, "mlp_bias": True}).biased == {
        "q_proj", "k_proj", "v_proj", "o_proj",
    }  # fmt: skip


def test_a_mistral_has_a_window_where_its_config_does_not_say_that_it_has_none() -> None:
    from transformers import MistralConfig

    assert check_config(MISTRAL).biased == set()
    assert check_config(MISTRAL | {"attention_bias": True}).biased == set()
    unnamed = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    window = MistralConfig().sliding_window  # type: ignore[no-untyped-call]
    with pytest.raises(ArtefactError, match=f"sliding_window is {window}"):
        check_config(unnamed)
    check_config(unnamed | {"max_position_embeddings": window})


def test_a_smollm3_rotates_the_layers_that_its_config_names() -> None:
    from transformers import SmolLM3Config

    decoder = check_config(SMOLLM3)
    assert decoder.is_tied == SmolLM3Config().tie_word_embeddings  # type: ignore[no-untyped-call]
    assert decoder.rotated == (True, True, True, False) * 9
    unnamed = {key: value for key, value in SMOLLM3.items() if not key.startswith("no_rope")}
    assert check_config(unnamed).rotated == decoder.rotated
    every = check_config(unnamed | {"no_rope_layer_interval": 2}).rotated
    assert every == (True, False) * 18
    assert all(check_config(QWEN3).rotated)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (SMOLLM3 | {"no_rope_layers": [1, 0]}, "expected 36 of 0 and 1"),
        (SMOLLM3 | {"no_rope_layers": ["x"] * 36}, "expected 36 of 0 and 1"),
        (
            SMOLLM3 | {"no_rope_layers": None, "no_rope_layer_interval": 0},
            "no_rope_layer_interval is 0, not a whole number",
        ),
        (QWEN3 | {"no_rope_layers": [1, 0] * 14}, "belong to SmolLM3"),
        (QWEN3 | {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}, "is 9"),
    ],
)
def test_layers_without_rotation_are_read_or_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ArtefactError, match=said):
        check_config(config)
