"""Adapters as constants of a graph: the mask form, portable and the reference of the C++
operations.

Stands between `adapters.py` (what a PEFT directory holds) and `network.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compllm.embedded.model import FUSED
from compllm.embedded.network import MaskedAdapters, MaskedGroup
from compllm.formats.adapters import Adapter
from compllm.formats.shape import BaseShape


def masked_adapters(shape: BaseShape, adapters: Mapping[int, Adapter]) -> MaskedAdapters:
    """Constants for the mask form of slots -> adapters; slots rise from 1."""
    result: dict[tuple[int, str], MaskedGroup] = {}
    sizes = shape.module_shapes()
    num_slots = max(adapters, default=0)
    for layer in range(shape.num_layers):
        for group in FUSED:
            names = [path.rsplit(".", 1)[1] for path in FUSED[group]]
            rows_of = np.cumsum([0, *(sizes[name][0] for name in names)])
            found = [
                (slot, place, module)
                for slot, adapter in adapters.items()
                for place, name in enumerate(names)
                if (module := adapter.modules.get((layer, name))) is not None
            ]
            if not found:
                continue
            a = np.concatenate([module.a for _, _, module in found]).astype(np.float32)
            b = np.zeros((int(rows_of[-1]), a.shape[0]), np.float32)
            mask = np.zeros((num_slots + 1, a.shape[0]), np.float32)
            column = 0
            for slot, place, module in found:
                rank = module.a.shape[0]
                b[rows_of[place] : rows_of[place + 1], column : column + rank] = module.folded_b
                mask[slot, column : column + rank] = 1.0
                column += rank
            result[layer, group] = MaskedGroup(a, b, mask)
    return result
