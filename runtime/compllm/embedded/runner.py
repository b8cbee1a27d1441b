"""Runs one engine step on OpenVINO: token ids in, logits out, keys and values in the paged cache.

`executor.py` decides what a step holds; this module knows compiled models and tensors, nothing
of requests. One model on OpenVINO's paged attention serves any step; steps of decoding alone have
one of a single C++ operation over the same cache (docs/ENGINE.md has what that brings).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from compllm.embedded.cores import new_core
from compllm.embedded.lora import masked_adapters
from compllm.embedded.model import Weights
from compllm.embedded.network import decode_network, fused_network, plain_network
from compllm.embedded.ops import DecoderTable, library_path
from compllm.errors import ArtefactError
from compllm.formats.adapters import Adapter

AdapterForm = Literal["auto", "op", "mask"]

_PANEL = 16  # the operation's attention takes heads of a multiple of this

# Sequences of a decoding step that have a model of their own, of fixed shape; 0 takes any number.
# One is made in milliseconds: it is one operation.
DECODE_SIZES = (0, 1, 2, 3, 4, 5, 6, 7, 8)

Arrays = dict[str, NDArray[Any]]


@dataclass(slots=True)
class Step:
    """Flat inputs of one step over S sequences and T tokens; made anew for each."""

    input_ids: list[int] = field(default_factory=list)  # [T]
    positions: list[int] = field(default_factory=list)  # [T]
    slots: list[int] = field(default_factory=list)  # [T] adapter of each token
    sampled: list[int] = field(default_factory=list)  # [N] places in 0 .. T-1 that need logits
    past_lens: list[int] = field(default_factory=list)  # [S] tokens already in the cache
    begins: list[int] = field(default_factory=lambda: [0])  # [S + 1] where sequences start in T
    blocks: list[int] = field(default_factory=list)  # cache blocks of all sequences
    block_begins: list[int] = field(default_factory=lambda: [0])  # [S + 1]
    max_context: int = 0

    def add(
        self, ids: Sequence[int], past: int, slot: int, blocks: Sequence[int], *, is_sampled: bool
    ) -> None:
        """Append one sequence: compute `ids` at positions past, past + 1, ..."""
        count = len(ids)
        self.input_ids += ids
        self.positions += range(past, past + count)
        self.slots += [slot] * count
        self.past_lens.append(past)
        self.begins.append(self.begins[-1] + count)
        self.blocks += blocks
        self.block_begins.append(len(self.blocks))
        self.max_context = max(self.max_context, past + count)
        if is_sampled:
            self.sampled.append(self.begins[-1] - 1)


class Runner:
    """Compiled models over one paged cache. One thread at a time.

    num_blocks: blocks of the cache. Raises ArtefactError when form "op" is wanted and its
    library is missing.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        num_blocks: int,
        kv_precision: str,
        num_slots: int,
        form: AdapterForm = "auto",
        num_threads: int = 0,
        decode_sizes: Sequence[int] = DECODE_SIZES,
    ) -> None:
        self.weights = weights
        self._core = new_core()
        self._config: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": kv_precision,
            # With AVX-512 OpenVINO would round activations to 8 bits, too, in its own products with
            # 8-bit weights: other tokens than elsewhere (logits off by a fifth of their spread).
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        if num_threads:
            self._config["INFERENCE_NUM_THREADS"] = num_threads
        library = library_path()
        if form == "op" and library is None:
            raise ArtefactError(
                "the LoRA operation's library is not installed: install compllm where "
                "OpenVINO can be imported, or choose adapters='mask'"
            )
        self.form: AdapterForm = "mask" if form == "mask" or library is None else "op"
        self.table: DecoderTable | None = None
        if self.form == "op":
            assert library is not None
            self._core.add_extension(str(library))
            self.table = DecoderTable(weights, num_slots, library)
        self._masked: dict[int, Adapter] = {}
        self._num_blocks = num_blocks
        self._cache: dict[str, ov.Tensor] = {}
        self._decode: dict[int, _Graph] = {}  # by sequences; 0: any number
        # The operation knows halves and floats; 8-bit caches are in OpenVINO's own packing.
        is_fit = kv_precision != "u8" and weights.shape.head_dim % _PANEL == 0
        self._decode_sizes = tuple(decode_sizes) if is_fit else ()
        self._compile()

    def set_adapter(self, slot: int, adapter: Adapter) -> None:
        """Load or replace an adapter between steps; the mask form recompiles (seconds)."""
        self.set_adapters({slot: adapter})

    def set_adapters(self, adapters: Mapping[int, Adapter]) -> None:
        """Several at once: the mask form recompiles only one time."""
        if self.table is not None:
            for slot, adapter in adapters.items():
                self.table.set(slot, adapter)
        elif adapters:
            self._masked |= adapters
            self._compile()

    def clear_adapter(self, slot: int) -> None:
        """Empty a slot. The mask form keeps the constants until the slot is used again."""
        if self.table is not None:
            self.table.clear(slot)

    def run(self, step: Step) -> NDArray[np.float32]:
        """Logits [N, vocab], a view that the next run overwrites."""
        return self._graph_for(step).run(
            {
                "input_ids": np.array(step.input_ids, np.int64),
                "position_ids": np.array(step.positions, np.int64),
                "adapter_slots": np.array(step.slots, np.int32),
                "sampled_tokens_indices": np.array(step.sampled, np.int64),
                "past_lens": np.array(step.past_lens, np.int32),
                "subsequence_begins": np.array(step.begins, np.int32),
                "block_indices": np.array(step.blocks, np.int32),
                "block_indices_begins": np.array(step.block_begins, np.int32),
                "max_context_len": np.array(step.max_context, np.int32),
            }
        )

    def close(self) -> None:
        """Free models, cache and table; nothing may run any more."""
        self._graph.close()
        for graph in self._decode.values():
            graph.close()
        self._cache.clear()
        if self.table is not None:
            self.table.close()

    def _compile(self) -> None:
        if self.table is None:
            masked = masked_adapters(self.weights.shape, self._masked)
            self._graph = self._compiled(plain_network(self.weights, masked))
            return
        self._graph = self._compiled(fused_network(self.table))
        if self._decode_sizes:
            for layer in range(self.weights.shape.num_layers):
                keys, values = (self._cache[f"{kind}_cache.{layer}"] for kind in ("key", "value"))
                self.table.set_cache(layer, keys.data, values.data)
        for num in self._decode_sizes:
            self._decode[num] = self._compiled(decode_network(self.table, num))

    def _graph_for(self, step: Step) -> _Graph:
        num = len(step.past_lens)
        if len(step.input_ids) > num:
            return self._graph
        fixed = self._decode.get(num) if len(step.sampled) == num else None
        return fixed or self._decode.get(0, self._graph)

    def _compiled(self, network: ov.Model) -> _Graph:
        compiled = self._core.compile_model(network, "CPU", self._config)
        request = compiled.create_infer_request()
        names = []
        for port in compiled.inputs:
            name = port.any_name
            if "cache" not in name:
                names.append(name)
                continue
            if name not in self._cache:
                dims = [d.get_length() for d in list(port.partial_shape)[1:]]
                shape = ov.Shape([self._num_blocks, *dims])
                self._cache[name] = ov.Tensor(port.element_type, shape)
            request.set_tensor(name, self._cache[name])
        return _Graph(request, names)


class _Graph:
    """One compiled model on the shared cache."""

    def __init__(self, request: Any, names: Collection[str]) -> None:
        self._request = request
        self._names = names  # of the inputs it has
        self._arrays: Arrays = {}  # what the request's tensors point to

    def run(self, arrays: Arrays) -> NDArray[np.float32]:
        for name in self._names:
            array, kept = arrays[name], self._arrays.get(name)
            if kept is not None and kept.shape == array.shape:
                kept[...] = array  # handing over a tensor anew takes longer
                continue
            self._arrays[name] = array
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))
        self._request.infer()
        logits: NDArray[np.float32] = self._request.get_output_tensor(0).data
        return logits

    def close(self) -> None:
        self._request = None
