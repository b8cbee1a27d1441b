"""OpenVINO graphs of a decoder of the Llama kind over paged attention, with adapters.

Takes `Weights`, gives `ov.Model`s that `runner.py` compiles. Tokens of all sequences lie flat on
axis 0; inputs are those of OpenVINO's own paged-attention models, plus `adapter_slots` i32 [T]
(0 is the base) and `sampled_tokens_indices` i64 [N], so that only sampled tokens pay for the
vocabulary. Two forms:

- `fused_network`: our C++ operations (csrc/decoder_ops.cpp) do everything between two attentions;
- `plain_network`: OpenVINO's operations only. Adapters' factors stand side by side in constants and
  a mask row per slot switches off all but the token's own (DESIGN section 4). The reference, and
  the fall-back where the operations' library is missing.
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

from compllm.embedded.model import Weights
from compllm.embedded.ops import DecoderTable


@dataclass(frozen=True, slots=True)
class MaskedGroup:
    """Factors of all adapters on one matrix group, side by side."""

    a: NDArray[np.float32]  # [R, in], R the sum of ranks
    b: NDArray[np.float32]  # [out, R]
    mask: NDArray[np.float32]  # [slots + 1, R]; row 0, the base, is zero


MaskedAdapters = Mapping[tuple[int, str], MaskedGroup]  # (layer, group)


def fused_network(table: DecoderTable) -> ov.Model:
    """The decoder as C++ operations around paged attention: logits f32 [N, vocab]."""
    return _Builder(table.weights).fused(table)


def plain_network(weights: Weights, adapters: MaskedAdapters | None = None) -> ov.Model:
    """The decoder in OpenVINO's own operations: logits f32 [N, vocab]."""
    return _Builder(weights).plain(adapters or {})


def decode_network(table: DecoderTable, num_sequences: int = 0) -> ov.Model:
    """A step of one new token for each of `num_sequences` sequences (0: any), all in one C++
    operation over the caches that the table holds: logits f32 [N, vocab]."""
    network = _Builder(table.weights).decode(table)
    if num_sequences:
        blocks = ("block_indices", "block_indices_begins")  # as many as the caches are long
        sizes = {
            port: ov.PartialShape([num_sequences])
            for port in network.inputs
            if port.any_name not in blocks
        }
        network.reshape(sizes)
    return network


class _Builder:
    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.shape = weights.shape
        self.parameters: list[ov.op.Parameter] = []
        self.ids = self._input("input_ids", [-1], np.int64)
        positions = self._input("position_ids", [-1], np.int64)
        self.slots = self._input("adapter_slots", [-1], np.int32)
        self.sampled = self._input("sampled_tokens_indices", [-1], np.int64)
        self.paging = [
            self._input("past_lens", [-1], np.int32),
            self._input("subsequence_begins", [-1], np.int32),
            self._input("block_indices", [-1], np.int32),
            self._input("block_indices_begins", [-1], np.int32),
        ]
        self.max_context_len = self._input("max_context_len", [], np.int32)
        self.cos, self.sin = self._rotary_tables(positions)

    def fused(self, table: DecoderTable) -> ov.Model:
        s = self.shape
        sizes = {
            "table": table.id,
            "hidden": s.hidden,
            "q_size": s.num_heads * s.head_dim,
            "kv_size": s.num_kv_heads * s.head_dim,
        }
        create = table.node_factory.create
        # The CPU plug-in narrows i64 anyway; said in the graph, the operations see one type.
        ids, sampled = ops.convert(self.ids, "i32"), ops.convert(self.sampled, "i32")
        q, k, v, residual = create(
            "DecoderStart", _nodes(ids, self.slots, self.cos, self.sin), sizes | {"layer": 0}
        ).outputs()
        for layer in range(s.num_layers - 1):
            attended = self._attention(layer, q, k, v)
            q, k, v, residual = create(
                "DecoderBlock",
                _nodes(attended, residual, self.slots, self.cos, self.sin),
                sizes | {"layer": layer},
            ).outputs()
        last = s.num_layers - 1
        attended = self._attention(last, q, k, v)
        return self._model(
            create(
                "DecoderEnd",
                _nodes(attended, residual, self.slots, sampled),
                sizes | {"layer": last, "vocab": s.vocab},
            )
        )

    def decode(self, table: DecoderTable) -> ov.Model:
        s = self.shape
        past_lens, _, blocks, block_begins = self.paging
        self.parameters = [
            each for each in self.parameters if each not in (self.paging[1], self.max_context_len)
        ]
        ids, sampled = ops.convert(self.ids, "i32"), ops.convert(self.sampled, "i32")
        inputs = _nodes(
            ids, self.slots, self.cos, self.sin, sampled, past_lens, blocks, block_begins
        )
        sizes = {"table": table.id, "hidden": s.hidden, "vocab": s.vocab}
        unused = {"layer": 0, "q_size": 0, "kv_size": 0}
        return self._model(table.node_factory.create("DecoderStep", inputs, sizes | unused))

    def plain(self, adapters: MaskedAdapters) -> ov.Model:
        s, arrays = self.shape, self.weights.arrays
        q_size, kv_size = s.num_heads * s.head_dim, s.num_kv_heads * s.head_dim
        embedding = self._matrix("embed")
        hidden = ops.gather(embedding, self.ids, np.int32(0))
        for layer in range(s.num_layers):
            normed = self._rms_norm(hidden, arrays[f"{layer}.input_norm"])
            q, k, v = ops.variadic_split(
                self._adapted(normed, layer, "qkv", adapters), 1, [q_size, kv_size, kv_size]
            ).outputs()
            attended = self._attention(
                layer, self._turn(q, layer, "q_norm"), self._turn(k, layer, "k_norm"), v
            )
            hidden = ops.add(hidden, self._adapted(attended, layer, "o", adapters))
            normed = self._rms_norm(hidden, arrays[f"{layer}.post_norm"])
            gate, up = ops.split(self._adapted(normed, layer, "gate_up", adapters), 1, 2).outputs()
            inner = ops.multiply(ops.swish(gate), up)
            hidden = ops.add(hidden, self._adapted(inner, layer, "down", adapters))
        hidden = ops.gather(self._rms_norm(hidden, arrays["norm"]), self.sampled, np.int32(0))
        head = self._matrix("lm_head") if "lm_head.weight" in arrays else embedding
        return self._model(ops.matmul(hidden, head, False, True))

    def _model(self, logits: Any) -> ov.Model:
        logits.output(0).get_tensor().set_names({"logits"})
        return ov.Model([ops.result(logits)], self.parameters, "compllm_decoder")

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

    def _adapted(self, x: Any, layer: int, group: str, adapters: MaskedAdapters) -> Any:
        y = self._linear(x, layer, group)
        factors = adapters.get((layer, group))
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

    def _turn(self, x: Any, layer: int, norm: str) -> Any:
        """Heads [T, heads * head_dim] before they attend: normed where the model norms them, and
        rotated, in the half-split form, where the layer is."""
        s, weight = self.shape, self.weights.arrays.get(f"{layer}.{norm}")
        num_heads = s.num_heads if norm == "q_norm" else s.num_kv_heads
        if weight is not None:
            heads = ops.reshape(x, np.array([-1, s.head_dim]), False)
            size = np.array([-1, num_heads * s.head_dim])
            x = ops.reshape(self._rms_norm(heads, weight), size, False)
        return self._rotate(x, num_heads) if self.weights.is_rotated(layer) else x

    def _rotate(self, x: Any, num_heads: int) -> Any:
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


def _nodes(*values: Any) -> list[Any]:
    """Outputs for the node factory, which takes neither nodes nor outputs mixed."""
    return [_output(value) for value in values]
