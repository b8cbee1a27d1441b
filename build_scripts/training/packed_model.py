"""The packed forward pass: a Hugging Face decoder with PEFT's LoRA factors, on `Packed`.

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

from compllm.build_scripts.training.kernels import LoraLinear, RmsNorm, SwiGlu
from compllm.build_scripts.training.packing import Packed

_NAME = "default"  # of the adapter in PEFT's model
_SITES = (
    ("self_attn", ("q_proj", "k_proj", "v_proj")),
    ("self_attn", ("o_proj",)),
    ("mlp", ("gate_proj", "up_proj")),
    ("mlp", ("down_proj",)),
)


@dataclass(frozen=True, slots=True)
class Site:
    """Linear layers that share an input: their frozen weights in one, their factors stacked."""

    weight: Tensor  # [outputs of all, inputs]
    bias: Tensor | None
    a: nn.Parameter | None  # [ranks of all that are adapted, inputs]; None: none is
    b: tuple[nn.Parameter, ...]  # of each B^T [rank, outputs]
    starts: tuple[int, ...]  # of each its first output
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        if self.a is None:
            return functional.linear(x, self.weight, self.bias)
        parts = (b.to(x.dtype) for b in self.b)
        y: Tensor = LoraLinear.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, self.starts, self.scale, self.a.to(x.dtype), *parts
        )
        return y


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
    head_norms: tuple[Tensor, ...] = ()  # of queries and keys, where heads are normed
    is_rotated: bool = True


class PackedModel:
    """Made of a PEFT model, once: `parameters` are what to train, and PEFT's model sees them."""

    def __init__(self, model: Any) -> None:
        causal = model.get_base_model()
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

    def parameters(self) -> list[nn.Parameter]:
        """Every factor, in a fixed order."""
        sites = [s for each in self._layers for s in (each.qkv, each.out, each.gate_up, each.down)]
        return [factor for site in sites if site.a is not None for factor in (site.a, *site.b)]

    def hidden(self, batch: Packed) -> Tensor:
        """Normed hidden states of the tokens that predict a response token, [R, hidden]."""
        h = self._embed[batch.tokens]
        cos, sin = self._rotary(h, batch.positions[None])
        cos, sin = cos[0][:, None], sin[0][:, None]  # [N, 1, head_dim]
        wanted = batch.owners
        for place, layer in enumerate(self._layers):
            qkv = layer.qkv(_norm(h, layer.norm1, layer.eps))
            mixed = self._attend(layer, qkv, batch, cos, sin)
            if place == len(self._layers) - 1:
                # No code reads the others any more.
                h, wanted = h[batch.sources], wanted[batch.sources]
            h = h + layer.out(mixed[wanted])
            x = layer.gate_up(_norm(h, layer.norm2, layer.eps))
            h = h + layer.down(SwiGlu.apply(x))  # type: ignore[no-untyped-call]
        return _norm(h, self._norm, self._eps)

    def logits(self, batch: Packed) -> Tensor:
        """[R, vocabulary], float32."""
        return functional.linear(self.hidden(batch), self._head).float()

    def loss(self, batch: Packed) -> Tensor:
        """Mean cross entropy over the response tokens."""
        return functional.cross_entropy(self.logits(batch), batch.targets)

    def _attend(self, layer: Layer, qkv: Tensor, batch: Packed, cos: Tensor, sin: Tensor) -> Tensor:
        """[N, (heads + 2 kv heads) * head_dim] -> [places in paths, heads * head_dim]."""
        heads, kv, dim = self._num_heads, self._num_kv, self._head_dim
        turned = qkv[:, : (heads + kv) * dim].view(-1, heads + kv, dim)
        if layer.head_norms:
            parts = zip(torch.split(turned, [heads, kv], dim=1), layer.head_norms, strict=True)
            turned = torch.cat([_norm(part, norm, layer.eps) for part, norm in parts], dim=1)
        if layer.is_rotated:
            turned = turned * cos + _rotate_half(turned) * sin
        both = torch.cat((turned, qkv[:, (heads + kv) * dim :].view(-1, kv, dim)), dim=1)
        sizes = [rows * length for rows, length in batch.blocks]
        mixed = []
        for block, (rows, length) in zip(
            torch.split(both[batch.paths], sizes), batch.blocks, strict=True
        ):
            paths = block.view(rows, length, heads + 2 * kv, dim).transpose(1, 2)
            q, k, v = torch.split(paths, [heads, kv, kv], dim=1)
            one = _attention(q, k, v)
            mixed.append(one.transpose(1, 2).reshape(rows * length, heads * dim))
        return torch.cat(mixed)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    # In float32 whatever the model's type is, as the model itself does it.
    y: Tensor = RmsNorm.apply(x.float(), weight.float(), eps)  # type: ignore[no-untyped-call]
    return y.to(x.dtype)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q [B, heads, T, D] on k and v [B, kv heads, T, D], in plain products.

    On a CPU the fused function's backward pass took three times as long at these lengths.
    """
    if q.is_cuda:
        is_shared = q.shape[1] != k.shape[1]
        return functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=is_shared
        )
    rows, heads, length, dim = q.shape
    kv = k.shape[1]
    later = torch.ones(length, length, dtype=torch.bool).triu_(1)
    scores = q.reshape(rows, kv, -1, dim) @ (k * dim**-0.5).transpose(-1, -2)
    scores = scores.view(rows, heads, length, length).masked_fill(later, -torch.inf)
    weights = scores.softmax(dim=-1).view(rows, kv, -1, length)
    mixed: Tensor = weights @ v
    return mixed.view(rows, heads, length, dim)


def _rotate_half(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


def _layer(layer: Any) -> Layer:
    qkv, out, gate_up, down = (
        _site([getattr(getattr(layer, block), name) for name in names]) for block, names in _SITES
    )
    return Layer(
        qkv,
        out,
        gate_up,
        down,
        norm1=layer.input_layernorm.weight,
        norm2=layer.post_attention_layernorm.weight,
        eps=layer.input_layernorm.variance_epsilon,
        head_norms=tuple(
            getattr(layer.self_attn, name).weight
            for name in ("q_norm", "k_norm")
            if hasattr(layer.self_attn, name)
        ),
        is_rotated=bool(getattr(layer.self_attn, "use_rope", True)),
    )


def _site(modules: list[Any]) -> Site:
    frozen = [getattr(module, "base_layer", module) for module in modules]
    sizes = [module.weight.shape[0] for module in frozen]
    adapted = [place for place, module in enumerate(modules) if hasattr(module, "lora_A")]
    lora = [modules[place] for place in adapted]
    with torch.no_grad():
        weight = torch.cat([module.weight for module in frozen])
        biases = [module.bias for module in frozen if module.bias is not None]
        a, b = _stack([m.lora_A[_NAME] for m in lora], [m.lora_B[_NAME] for m in lora])
    return Site(
        weight,
        torch.cat(biases) if len(biases) == len(frozen) else None,
        a,
        b,
        tuple(sum(sizes[:place]) for place in adapted),
        lora[0].scaling[_NAME] if lora else 1.0,
    )


def _stack(
    a_modules: list[Any], b_modules: list[Any]
) -> tuple[nn.Parameter | None, tuple[nn.Parameter, ...]]:
    """The factors in the layout that the kernels want; PEFT's own become views of them, so both
    always hold the same numbers."""
    if not a_modules:
        return None, ()
    a = nn.Parameter(torch.cat([module.weight for module in a_modules]))
    start = 0
    for module in a_modules:
        module.weight.data = a.data[start : start + module.weight.shape[0]]
        start += module.weight.shape[0]
    b = []
    for module in b_modules:
        b.append(nn.Parameter(module.weight.t().contiguous()))
        module.weight.data = b[-1].data.t()
    return a, tuple(b)
