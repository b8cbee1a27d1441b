"""The pieces of a decoder layer with backward passes written by hand: less work than autograd does.

The base is frozen, so its weights get no gradients; products with LoRA's thin factors stand in the
orientation that BLAS is fast in (a [tokens, rank] matrix on the left, factors stored by rows); sums
go into a product's own output; gradients of joined projections are written in place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


class LoraLinear(Function):
    """y = x W^T + bias, and y[:, start_k:] += scale (x A_k^T) B_k^T of each adapted part k.

    x [N, inputs]; weight [outputs of all parts, inputs]; a [ranks of all, inputs]; parts: each
    B_k^T [rank, outputs of the part].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        starts: Sequence[int],
        scale: float,
        a: Tensor,
        *parts: Tensor,
    ) -> Tensor:
        y = torch.mm(x, weight.t())
        if bias is not None:
            y += bias
        u = torch.mm(x, a.t()).mul_(scale)
        for place, start, b in _places(starts, parts):
            y[:, start : start + b.shape[1]].addmm_(u[:, place : place + b.shape[0]], b)
        ctx.save_for_backward(x, weight, a, u, *parts)
        ctx.starts, ctx.scale = starts, scale
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, u, *parts = ctx.saved_tensors
        du = torch.empty_like(u)
        grads = []
        for place, start, b in _places(ctx.starts, parts):
            part = dy[:, start : start + b.shape[1]]
            torch.mm(part, b.t(), out=du[:, place : place + b.shape[0]])
            grads.append(torch.mm(u[:, place : place + b.shape[0]].t(), part))
        du.mul_(ctx.scale)
        dx = torch.mm(dy, weight).addmm_(du, a) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None, torch.mm(du.t(), x), *grads


def _places(starts: Sequence[int], parts: Sequence[Tensor]) -> Iterator[tuple[int, int, Tensor]]:
    """(first rank, first output, B^T) of each part."""
    place = 0
    for start, b in zip(starts, parts, strict=True):
        yield place, start, b
        place += b.shape[0]


class SwiGlu(Function):
    """silu(gate) * up of [N, gate | up]."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        gate, up = both.chunk(2, dim=-1)
        y: Tensor = torch.sigmoid(gate).mul_(gate).mul_(up)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        gate, up = both.chunk(2, dim=-1)
        sigmoid = torch.sigmoid(gate)
        grad = torch.empty_like(both)
        dgate, dup = grad.chunk(2, dim=-1)
        silu = sigmoid * gate
        torch.mul(dy, silu, out=dup)
        # d silu = sigmoid + silu * (1 - sigmoid)
        silu.addcmul_(silu, sigmoid, value=-1).add_(sigmoid)
        torch.mul(dy, up, out=dgate)
        dgate.mul_(silu)
        return grad


class RmsNorm(Function):
    """x / rms(x) * weight, weight frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        y: Tensor = (x * scale).mul_(weight)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        g = dy * weight
        # dx = scale * (g - x * scale^2 * mean(g x))
        dot = (g * x).sum(-1, keepdim=True).mul_(scale.square()).div_(-x.shape[-1])
        dx: Tensor = g.addcmul_(x, dot).mul_(scale)
        return dx, None, None
