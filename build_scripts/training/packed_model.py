"""The packed forward pass: a Hugging Face Llama or Qwen2 with PEFT's LoRA factors, on `Packed`.

The same numbers as the model's own forward pass (a test compares loss and gradients), in less time:
frozen projections that share an input are one product, the output layer sees response tokens alone,
and the tokens of a batch are a trie (packing.py). PEFT owns the factors; this only reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compllm.build_scripts.training.packing import Packed

_SITES = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)


@dataclass(frozen=True, slots=True)
class Site:
    """Linear layers that share an input: their frozen weights in one, their factors apart."""

    weight: Tensor  # [outputs of all, inputs]
    bias: Tensor | None
    factors: tuple[tuple[Tensor, Tensor, float] | None, ...]  # (A, B, scale) of each
    sizes: tuple[int, ...]  # outputs of each

    def __call__(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.weight, self.bias)
        there = [factor for factor in self.factors if factor is not None]
        if not there:
            return y
        a = torch.cat([a for a, _, _ in there]).to(x.dtype)
        u = functional.linear(x, a)
        parts, start = [], 0
        for factor, size in zip(self.factors, self.sizes, strict=True):
            if factor is None:
                parts.append(y.new_zeros(y.shape[0], size))
                continue
            _, b, scale = factor
            rank = b.shape[1]
            parts.append(functional.linear(u[:, start : start + rank], b.to(x.dtype) * scale))
            start += rank
        return y + (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer."""

    qkv: Site
    out: Site
    gate_up: Site
    down: Site
    norm1: Tensor
    norm2: Tensor
    eps: float


class PackedModel:
    """Made of a PEFT model once; its factors are read at every call."""

    def __init__(self, model: nn.Module) -> None:
        causal: Any = model.get_base_model()  # type: ignore[operator]
        config, inner = causal.config, causal.model
        self._num_heads: int = config.num_attention_heads
        self._num_kv: int = config.num_key_value_heads
        self._head_dim: int = (
            getattr(config, "head_dim", None) or config.hidden_size // self._num_heads
        )
        self._rotary = inner.rotary_emb
        self._embed: Tensor = inner.embed_tokens.weight
        self._head: Tensor = causal.lm_head.weight
        self._norm: Tensor = inner.norm.weight
        self._layers = [_layer(layer) for layer in inner.layers]
        self._eps: float = self._layers[0].eps

    def hidden(self, batch: Packed) -> Tensor:
        """Normed hidden states of the tokens that predict a response token, [R, hidden]."""
        h = self._embed[batch.tokens]
        cos, sin = self._rotary(h, batch.positions[None])
        cos, sin = cos[0][:, None], sin[0][:, None]  # [N, 1, head_dim]
        for layer in self._layers:
            x = functional.rms_norm(h, h.shape[-1:], layer.norm1, layer.eps)
            h = h + layer.out(self._attend(layer.qkv(x), batch, cos, sin))
            x = functional.rms_norm(h, h.shape[-1:], layer.norm2, layer.eps)
            gate, up = layer.gate_up(x).chunk(2, dim=-1)
            h = h + layer.down(functional.silu(gate) * up)
        h = h[batch.sources]
        return functional.rms_norm(h, h.shape[-1:], self._norm, self._eps)

    def logits(self, batch: Packed) -> Tensor:
        """[R, vocabulary], float32."""
        return functional.linear(self.hidden(batch), self._head).float()

    def loss(self, batch: Packed) -> Tensor:
        """Mean cross entropy over the response tokens."""
        return functional.cross_entropy(self.logits(batch), batch.targets)

    def _attend(self, qkv: Tensor, batch: Packed, cos: Tensor, sin: Tensor) -> Tensor:
        """[N, (heads + 2 kv heads) * head_dim] -> [N, heads * head_dim]."""
        num_rows, length = batch.paths.shape
        heads, kv, dim = self._num_heads, self._num_kv, self._head_dim
        turned = qkv[:, : (heads + kv) * dim].view(-1, heads + kv, dim)
        turned = turned * cos + _rotate_half(turned) * sin
        both = torch.cat((turned, qkv[:, (heads + kv) * dim :].view(-1, kv, dim)), dim=1)
        paths = both[batch.paths.view(-1)].view(num_rows, length, heads + 2 * kv, dim)
        q, k, v = paths.transpose(1, 2).split((heads, kv, kv), dim=1)
        if kv != heads:
            k = k.repeat_interleave(heads // kv, dim=1)
            v = v.repeat_interleave(heads // kv, dim=1)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        flat = mixed.transpose(1, 2).reshape(num_rows * length, heads * dim)
        return flat[batch.owners]


def _rotate_half(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


def _layer(layer: Any) -> Layer:
    sites = [
        _site([getattr(getattr(layer, block), name) for name in names]) for block, names in _SITES
    ]
    return Layer(
        *sites,
        norm1=layer.input_layernorm.weight,
        norm2=layer.post_attention_layernorm.weight,
        eps=layer.input_layernorm.variance_epsilon,
    )


def _site(modules: list[Any]) -> Site:
    frozen = [getattr(module, "base_layer", module) for module in modules]
    with torch.no_grad():
        weight = torch.cat([module.weight for module in frozen])
        biases = [module.bias for module in frozen]
        bias = None if any(each is None for each in biases) else torch.cat(biases)
    return Site(
        weight.detach(),
        bias,
        tuple(_factors(module) for module in modules),
        tuple(module.weight.shape[0] for module in frozen),
    )


def _factors(module: Any) -> tuple[Tensor, Tensor, float] | None:
    if not hasattr(module, "lora_A"):
        return None
    name = "default"
    return module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name]
