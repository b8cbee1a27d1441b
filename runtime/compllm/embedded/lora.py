"""Adapters in the form each kind of network wants: rows of the C++ operations' table, or mask
constants.

Stands between `adapters.py` (what a PEFT directory holds) and `network.py` / `executor.py`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import compllm._core
from compllm.embedded.adapters import Adapter, LoraWeights
from compllm.embedded.model import FUSED
from compllm.embedded.network import GROUPS, FusedOp, MaskedAdapters, MaskedGroup
from compllm.embedded.shape import BaseShape
from compllm.errors import EngineError

_LIBRARY = "libcompllm_lora_op.so"


def library_path() -> Path | None:
    """The C++ operations' library, or None where the package was built without OpenVINO."""
    # Beside the compiled core: in an editable installation that is not where the sources are.
    path = Path(compllm._core.__file__).parent / "embedded" / _LIBRARY
    return path if path.is_file() else None


class AdapterTable:
    """Adapter slots 1 .. num_slots inside the C++ library; slot 0 is the base.

    Only the thread that runs inferences may change it, between two of them.
    """

    def __init__(self, shape: BaseShape, num_slots: int, library: Path) -> None:
        # Our library finds OpenVINO's by name among those already loaded.
        import openvino  # noqa: F401
        from openvino.utils.node_factory import NodeFactory

        self.shape = shape
        self._library = _load(library)
        self._factory = NodeFactory()
        self._factory.add_extension(str(library))
        self.id = int(self._library.compllm_lora_new(shape.num_layers, num_slots))
        self.isa = self._library.compllm_lora_isa().decode()

    @property
    def op(self) -> FusedOp:
        """What `build_network` takes."""
        return FusedOp(self.id, self._factory)

    def set(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter into a slot, in place of what is there. About 10 ms at rank 8."""
        self.clear(slot)
        sizes = self.shape.module_shapes()
        for layer in range(self.shape.num_layers):
            for group_id, group in enumerate(GROUPS):
                modules, offsets, offset = [], [], 0
                for path in FUSED[group]:
                    name = path.rsplit(".", 1)[1]
                    if (module := adapter.modules.get((layer, name))) is not None:
                        modules.append(module)
                        offsets.append(offset)
                    offset += sizes[name][0]
                if modules:
                    self._set(slot, layer, group_id, modules, offsets)

    def clear(self, slot: int) -> None:
        """Empty a slot; its tokens are the base's from now on."""
        if self._library.compllm_lora_clear(self.id, slot):
            raise EngineError(f"adapter slot {slot} does not exist")

    def close(self) -> None:
        self._library.compllm_lora_free(self.id)

    def _set(
        self,
        slot: int,
        layer: int,
        group: int,
        modules: Sequence[LoraWeights],
        offsets: Sequence[int],
    ) -> None:
        a = _half(np.concatenate([m.a for m in modules]))
        b = np.concatenate([_half(m.b.T).ravel() for m in modules])
        code = self._library.compllm_lora_set(
            self.id,
            slot,
            layer,
            group,
            a.shape[1],
            a.ctypes.data,
            b.ctypes.data,
            len(modules),
            _ints([m.a.shape[0] for m in modules]),
            _ints([m.b.shape[0] for m in modules]),
            _ints(offsets),
        )
        if code:
            raise EngineError(f"adapter slot {slot}, layer {layer} does not exist")


def masked_adapters(shape: BaseShape, adapters: Mapping[int, Adapter]) -> MaskedAdapters:
    """Constants for the mask form of slots -> adapters; slots rise from 1."""
    result: dict[tuple[int, str], MaskedGroup] = {}
    sizes = shape.module_shapes()
    num_slots = max(adapters, default=0)
    for layer in range(shape.num_layers):
        for group in GROUPS:
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
                b[rows_of[place] : rows_of[place + 1], column : column + rank] = module.b
                mask[slot, column : column + rank] = 1.0
                column += rank
            result[layer, group] = MaskedGroup(a, b, mask)
    return result


def _load(path: Path) -> Any:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise EngineError(
            f"{path} cannot be loaded ({error}): it belongs to another OpenVINO release. "
            "Install compllm again beside this one, or choose the mask graph"
        ) from error
    library.compllm_lora_new.restype = ctypes.c_long
    library.compllm_lora_new.argtypes = [ctypes.c_int, ctypes.c_int]
    library.compllm_lora_free.argtypes = [ctypes.c_long]
    library.compllm_lora_clear.argtypes = [ctypes.c_long, ctypes.c_int]
    ints = ctypes.POINTER(ctypes.c_int)
    pointer = ctypes.c_void_p
    library.compllm_lora_set.argtypes = [
        ctypes.c_long,
        *([ctypes.c_int] * 4),
        pointer,
        pointer,
        ctypes.c_int,
        ints,
        ints,
        ints,
    ]
    library.compllm_lora_isa.restype = ctypes.c_char_p
    return library


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(values, np.float16)
    if not np.isfinite(half).all():
        raise EngineError("an adapter's weight is beyond half precision (65504)")
    return half


def _ints(values: Sequence[int]) -> Any:
    return (ctypes.c_int * len(values))(*values)
