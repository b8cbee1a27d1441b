"""BERT sentence encoders of MiniLM's size in numpy: what `embed.py` uses where the checkpoint
allows it.

Measured on two shared cores: sentence-transformers takes 9 s to import and load and 77 ms for a
short question, this 0.8 s and 28 ms, without torch. A test holds its vectors against the library's.
Architecture: Devlin et al. 2018 (post-norm, erf GELU), mean pooling over the real tokens, unit
length.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

_BATCH = 16
_MASKED = np.float32(-1e9)  # added to the scores of padding


def fits(path: Path) -> bool:
    """Whether this directory is such an encoder: BERT, mean pooling, safetensors, at most a norm
    after."""
    try:
        config = _read(path / "config.json")
        types = [str(module["type"]) for module in _read(path / "modules.json")]
        pooling = _read(path / "1_Pooling" / "config.json")
    except (OSError, ValueError, KeyError, TypeError):
        return False
    modules = [name.rpartition(".")[2] for name in types]
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value]
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and modules in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
        and modes == ["pooling_mode_mean_tokens"]
        and (path / "model.safetensors").is_file()
        and (path / "tokenizer.json").is_file()
    )


class MiniLM:
    """A BERT encoder with the interface of a SentenceTransformer, as far as `embed.py` needs it."""

    def __init__(self, path: Path) -> None:
        import tokenizers
        from safetensors.numpy import load_file

        config = _read(path / "config.json")
        limits = path / "sentence_bert_config.json"
        max_length = _read(limits).get("max_seq_length") if limits.is_file() else None
        self._tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
        self._tokenizer.enable_truncation(max_length or config["max_position_embeddings"])
        self._tokenizer.enable_padding(pad_id=config.get("pad_token_id") or 0)
        weights = load_file(path / "model.safetensors")
        self._weights = {
            key.removeprefix("bert."): value.astype(np.float32) for key, value in weights.items()
        }
        self._num_layers = int(config["num_hidden_layers"])
        self._num_heads = int(config["num_attention_heads"])
        self._epsilon = float(config["layer_norm_eps"])
        self._dim = int(config["hidden_size"])

    def get_embedding_dimension(self) -> int:
        return self._dim

    def encode(self, texts: Sequence[str], **_: object) -> Array:
        """float32 [len(texts), dim], unit rows, in the order of the texts."""
        rows = np.empty((len(texts), self._dim), np.float32)
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(by_length), _BATCH):
            batch = by_length[start : start + _BATCH]
            rows[batch] = self._encode([texts[index] for index in batch])
        return rows

    def _encode(self, texts: list[str]) -> Array:
        encodings = self._tokenizer.encode_batch(texts)
        ids = np.array([encoding.ids for encoding in encodings])
        mask = np.array([encoding.attention_mask for encoding in encodings], np.float32)
        w = self._weights
        hidden = (
            w["embeddings.word_embeddings.weight"][ids]
            + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
            + w["embeddings.token_type_embeddings.weight"][0]
        )
        hidden = self._norm(hidden, "embeddings.LayerNorm")
        bias = (1 - mask)[:, None, None, :] * _MASKED
        for layer in range(self._num_layers):
            hidden = self._layer(hidden, bias, f"encoder.layer.{layer}")
        pooled = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        unit: Array = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return unit

    def _layer(self, hidden: Array, bias: Array, name: str) -> Array:
        queries, keys, values = (
            self._heads(self._linear(hidden, f"{name}.attention.self.{part}"))
            for part in ("query", "key", "value")
        )
        scores = queries @ keys.swapaxes(-1, -2) / np.float32(math.sqrt(queries.shape[-1])) + bias
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        context = (scores @ values).swapaxes(1, 2).reshape(hidden.shape)
        attended = self._linear(context, f"{name}.attention.output.dense")
        hidden = self._norm(hidden + attended, f"{name}.attention.output.LayerNorm")
        inner = _gelu(self._linear(hidden, f"{name}.intermediate.dense"))
        return self._norm(
            hidden + self._linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm"
        )

    def _heads(self, x: Array) -> Array:
        """[batch, length, dim] -> [batch, heads, length, dim / heads]."""
        return x.reshape(*x.shape[:2], self._num_heads, -1).swapaxes(1, 2)

    def _linear(self, x: Array, name: str) -> Array:
        y: Array = x @ self._weights[f"{name}.weight"].T
        y += self._weights[f"{name}.bias"]
        return y

    def _norm(self, x: Array, name: str) -> Array:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self._epsilon))
        y: Array = x * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]
        return y


def _gelu(x: Array) -> Array:
    from scipy.special import erf

    y: Array = x * (1 + erf(x / np.float32(math.sqrt(2)))) / 2
    return y


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
