"""OpenVINO graphs of a Llama or Qwen2 decoder over paged attention, with or without adapters.

Takes `Weights`, gives `ov.Model`s that `executor.py` compiles. Tokens of all sequences lie flat
on axis 0; inputs are those of OpenVINO's own paged-attention models, plus `adapter_slots` i32
[T] (0 is the base) and `sampled_tokens_indices` i64 [N], so that only sampled tokens pay for the
vocabulary. Two ways to apply adapters:

- FusedOp: our C++ operations (csrc/lora_op.cpp), which also do rotary embedding, SwiGLU and RMS
norm;
- MaskedAdapters: graph operations only. The adapters' factors stand side by side in constants
and a mask row
  per slot switches off all but the token's own (DESIGN section 4). The reference, and the
  fall-back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.op import _PagedAttentionExtension

from compllm.embedded.model import FUSED, Weights

GROUPS = tuple(FUSED)  # order of the C++ operation's groups


@dataclass(frozen=True, slots=True)
class FusedOp:
    """Adapters applied by the C++ operations, which read them from this table."""

    table: int
    node_factory: Any  # with the operations registered


@dataclass(frozen=True, slots=True)
class MaskedGroup:
    """Factors of all adapters on one matrix group, side by side."""

    a: NDArray[np.float32]  # [R, in], R the sum of ranks
    b: NDArray[np.float32]  # [out, R]
    mask: NDArray[np.float32]  # [slots + 1, R]; row 0, the base, is zero


MaskedAdapters = Mapping[tuple[int, str], MaskedGroup]  # (layer, group)


def build_network(
    weights: Weights,
    adapters: FusedOp | MaskedAdapters | None = None,
    *,
    num_tokens: int | None = None,
) -> ov.Model:
    """The whole decoder as one model: logits f32 [N, vocab] of the sampled tokens.

    num_tokens: None leaves every length dynamic; a number fixes T, S and N to it, for a step in
    which that many sequences decode one token each.
    """
    return _Builder(weights, adapters, num_tokens).build()


class _Builder:
    def __init__(
        self, weights: Weights, adapters: FusedOp | MaskedAdapters | None, num_tokens: int | None
    ) -> None:
        self.weights = weights
        self.shape = weights.shape
        self.adapters = adapters
        self.num_tokens = num_tokens
        self.parameters: list[ov.op.Parameter] = []

    def build(self) -> ov.Model:
        tokens = -1 if self.num_tokens is None else self.num_tokens
        starts = -1 if self.num_tokens is None else self.num_tokens + 1
        ids = self._input("input_ids", [tokens], np.int64)
        positions = self._input("position_ids", [tokens], np.int64)
        self.slots = self._input("adapter_slots", [tokens], np.int32)
        sampled = self._input("sampled_tokens_indices", [tokens], np.int64)
        self.paging = [
            self._input("past_lens", [tokens], np.int32),
            self._input("subsequence_begins", [starts], np.int32),
            self._input("block_indices", [-1], np.int32),
            self._input("block_indices_begins", [starts], np.int32),
        ]
        self.max_context_len = self._input("max_context_len", [], np.int32)
        self.cos, self.sin = self._rotary_tables(positions)

        embedding = self._matrix("embed")
        hidden = ops.gather(embedding, ids, np.int32(0))
        if isinstance(self.adapters, FusedOp):
            hidden = self._fused_layers(hidden, self.adapters)
        else:
            hidden = self._plain_layers(hidden)
        hidden = ops.gather(hidden, sampled, np.int32(0))
        head = self._matrix("lm_head") if "lm_head.weight" in self.weights.arrays else embedding
        logits = ops.matmul(hidden, head, False, True)
        logits.output(0).get_tensor().set_names({"logits"})
        return ov.Model([ops.result(logits)], self.parameters, "compllm_decoder")

    # ---- the two forms of a layer stack
    # ------------------------------------------------------------

    def _fused_layers(self, hidden: Any, op: FusedOp) -> Any:
        s, arrays = self.shape, self.weights.arrays
        normed = self._rms_norm(hidden, arrays["0.input_norm"])
        for layer in range(s.num_layers):
            common = {"table": op.table, "layer": layer}
            qkv = op.node_factory.create(
                "LoraQkvRope",
                [self._linear(normed, layer, "qkv"), normed, self.slots, self.cos, self.sin],
                common
                | {
                    "q_size": s.num_heads * s.head_dim,
                    "kv_size": s.num_kv_heads * s.head_dim,
                    "head_dim": s.head_dim,
                },
            )
            attended = self._attention(layer, *qkv.outputs())
            added = op.node_factory.create(
                "LoraAddNorm",
                [
                    self._linear(attended, layer, "o"),
                    attended,
                    hidden,
                    ops.constant(arrays[f"{layer}.post_norm"]),
                    self.slots,
                ],
                common | {"group": GROUPS.index("o"), "eps": self.weights.rms_eps},
            )
            hidden, normed = added.outputs()
            inner = op.node_factory.create(
                "LoraSwiGlu", [self._linear(normed, layer, "gate_up"), normed, self.slots], common
            ).output(0)
            is_last = layer + 1 == s.num_layers
            norm = arrays["norm"] if is_last else arrays[f"{layer + 1}.input_norm"]
            added = op.node_factory.create(
                "LoraAddNorm",
                [
                    self._linear(inner, layer, "down"),
                    inner,
                    hidden,
                    ops.constant(norm),
                    self.slots,
                ],
                common | {"group": GROUPS.index("down"), "eps": self.weights.rms_eps},
            )
            hidden, normed = added.outputs()
        return normed

    def _plain_layers(self, hidden: Any) -> Any:
        s, arrays = self.shape, self.weights.arrays
        q_size, kv_size = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
        for layer in range(s.num_layers):
            normed = self._rms_norm(hidden, arrays[f"{layer}.input_norm"])
            q, k, v = ops.variadic_split(
                self._adapted(normed, layer, "qkv"), 1, [q_size, kv_size, kv_size]
            ).outputs()
            attended = self._attention(
                layer, self._rotate(q, s.num_heads), self._rotate(k, s.num_kv_heads), v
            )
            hidden = ops.add(hidden, self._adapted(attended, layer, "o"))
            normed = self._rms_norm(hidden, arrays[f"{layer}.post_norm"])
            gate, up = ops.split(self._adapted(normed, layer, "gate_up"), 1, 2).outputs()
            inner = ops.multiply(ops.swish(gate), up)
            hidden = ops.add(hidden, self._adapted(inner, layer, "down"))
        return self._rms_norm(hidden, arrays["norm"])

    # ---- parts
    # ---------------------------------------------------------------------------------------

    def _input(self, name: str, shape: list[int], dtype: Any) -> Any:
        parameter = ops.parameter(shape, dtype, name)
        parameter.output(0).get_tensor().set_names({name})
        self.parameters.append(parameter)
        return parameter

    def _matrix(self, name: str) -> Any:
        """A weight as f32 [out, in]; the plug-in keeps the stored form and fuses this into the
        product.
        """
        arrays = self.weights.arrays
        weight = ov.op.Constant(arrays[f"{name}.weight"], shared_memory=True)
        if weight.get_element_type() == ov.Type.f16:
            return ops.convert(weight, "f32")
        zero_point = ops.convert(ops.constant(arrays[f"{name}.zero_point"]), "f16")
        centred = ops.subtract(ops.convert(weight, "f16"), zero_point)
        return ops.convert(
            ops.multiply(centred, ops.constant(arrays[f"{name}.scale"], ov.Type.f16)), "f32"
        )

    def _linear(self, x: Any, layer: int, group: str) -> Any:
        y = ops.matmul(x, self._matrix(f"{layer}.{group}"), False, True)
        bias = self.weights.arrays.get(f"{layer}.{group}.bias")
        return y if bias is None else ops.add(y, ops.constant(bias[None, :]))

    def _adapted(self, x: Any, layer: int, group: str) -> Any:
        y = self._linear(x, layer, group)
        factors = None
        if self.adapters is not None and not isinstance(self.adapters, FusedOp):
            factors = self.adapters.get((layer, group))
        if factors is None:
            return y
        low = ops.matmul(x, ops.constant(factors.a), False, True)
        low = ops.multiply(low, ops.gather(ops.constant(factors.mask), self.slots, np.int32(0)))
        return ops.add(y, ops.matmul(low, ops.constant(factors.b), False, True))

    def _rms_norm(self, x: Any, weight: NDArray[np.float32]) -> Any:
        # Spelt as optimum exports it, the form that the CPU plug-in fuses into one node.
        mean = ops.reduce_mean(ops.power(x, np.float32(2.0)), np.array([-1]), True)
        root = ops.sqrt(ops.add(mean, np.float32(self.weights.rms_eps)))
        normed = ops.multiply(x, ops.divide(np.float32(1.0), root))
        return ops.multiply(ops.constant(weight[None, :]), normed)

    def _rotary_tables(self, positions: Any) -> tuple[Any, Any]:
        """cos and sin [T, head_dim / 2] at each token's position."""
        inv_freq = self.weights.arrays["rope.inv_freq"][None, :]
        angles = ops.multiply(
            ops.unsqueeze(ops.convert(positions, "f32"), np.int64(1)), ops.constant(inv_freq)
        )
        cos, sin = ops.cos(angles), ops.sin(angles)
        if self.weights.rope_scaling != 1.0:
            factor = np.float32(self.weights.rope_scaling)
            cos, sin = ops.multiply(cos, factor), ops.multiply(sin, factor)
        return cos, sin

    def _rotate(self, x: Any, num_heads: int) -> Any:
        """Rotary embedding of [T, heads * head_dim] in the half-split form."""
        dim = self.shape.head_dim
        heads = ops.reshape(x, np.array([-1, num_heads, 1, dim]), False)
        table = [
            ops.reshape(ops.concat([t, t], 1), np.array([-1, 1, 1, dim]), False)
            for t in (self.cos, self.sin)
        ]
        first, second = ops.split(heads, 3, 2).outputs()
        turned = ops.concat([ops.multiply(second, np.float32(-1.0)), first], 3)
        rotated = ops.add(ops.multiply(heads, table[0]), ops.multiply(turned, table[1]))
        return ops.reshape(rotated, np.array([-1, num_heads * dim]), False)

    def _attention(self, layer: int, q: Any, k: Any, v: Any) -> Any:
        s = self.shape
        caches = []
        for kind in ("key_cache", "value_cache"):
            cache = ops.parameter([-1, -1, -1, -1], ov.Type.dynamic, f"{kind}.{layer}")
            cache.output(0).get_tensor().set_names({f"{kind}.{layer}"})
            self.parameters.append(cache)
            caches.append(cache)
        none_i, none_f = np.zeros(0, np.int32), np.zeros(0, np.float32)
        zero = np.int32(0)
        rest: list[Any] = [
            np.float32(s.head_dim**-0.5),  # scale
            zero,  # sliding window: none
            none_f,  # alibi slopes
            self.max_context_len,
            none_i,  # score aggregation window
            none_i,  # rotated block indices
            none_i,  # rotation deltas
            none_f,  # rotation table
            none_f,  # sparse attention threshold
            zero,  # sparse attention block size
            zero,  # sparse attention stride
            np.zeros((0, 0, 0, 0), np.float32),  # sinks
            zero,  # adaptive R-KV start size
            none_i,
            none_i,
            none_i,
            none_i,
            np.zeros(0, np.uint8),  # token types
            none_i,
        ]
        inputs = [q, k, v, *caches, *self.paging, *rest]
        outputs = [_output(i) for i in inputs]
        attention = _PagedAttentionExtension(outputs)
        info = attention.get_rt_info()
        for key in ("num_k_heads", "num_v_heads"):
            info[key] = s.num_kv_heads
        for key in ("k_head_size", "v_head_size"):
            info[key] = s.head_dim
        return attention.output(0)


def _output(value: Any) -> Any:
    if isinstance(value, ov.Output):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return ov.op.Constant(np.asarray(value)).output(0)
    return value.output(0)
