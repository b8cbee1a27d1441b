"""Tiny checkpoints of each family that the embedded engine serves, with random weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

# Name of a checkpoint -> its family in transformers, and what its config says besides the sizes.
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3, heads of 128, one key head, tied": (
        "Qwen3", {"head_dim": 128, "num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "qwen3 with biases": ("Qwen3", {"head_dim": 16, "attention_bias": True}),
    "mistral": ("Mistral", {"sliding_window": None, "head_dim": 64}),
    "mistral, a window that holds every text": ("Mistral", {"sliding_window": 512}),
    "smollm3, the fourth layer is not rotated": (
        "SmolLM3", {"num_hidden_layers": 4, "tie_word_embeddings": True},
    ),
    "smollm3, the first layer is not rotated": ("SmolLM3", {"no_rope_layers": [0, 1]}),
    "smollm3 with every bias": ("SmolLM3", {"attention_bias": True, "mlp_bias": True}),
    "llama, every head its own keys, heads of 16, yarn": (
        "Llama",
        {
            "num_key_value_heads": 4,
            "rope_parameters": {
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 2.0,
                "original_max_position_embeddings": 256,
            },
        },
    ),
    "llama, linear rope": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    ),
}  # fmt: skip


def make_family(name: str, tiny_checkpoint: Path, directory: Path) -> Path:
    """A checkpoint of FAMILIES with the tokenizer of another. Norms and biases are random, too:
    they would begin at one and zero."""
    import torch
    import transformers

    family, more = FAMILIES[name]
    tiny = json.loads((tiny_checkpoint / "config.json").read_text())
    sizes = {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "initializer_range": 0.2,
    }  # fmt: skip
    kept = {k: tiny[k] for k in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    config = getattr(transformers, f"{family}Config")(**(sizes | kept | more))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(".bias"):
                torch.nn.init.normal_(parameter)
            elif "norm" in parameter_name:
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
    model.save_pretrained(directory)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_checkpoint / file, directory / file)
    return directory
