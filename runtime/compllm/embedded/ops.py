"""The C++ operations: their library, and the table of weights and adapters they compute with.

Stands between `model.py` (arrays) and `network.py` (graphs of these operations);
`matmul_offload.py` takes single products from the same library. csrc/tables.cpp is the other side
of the ctypes calls.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import compllm._core
from compllm.embedded.model import FUSED, Weights
from compllm.errors import ArtefactError, EngineError
from compllm.formats.adapters import Adapter, LoraWeights

_LIBRARY = "libcompllm_lora_op.so"
_LINE = 64  # bytes of a cache line
PANEL = 16  # rows of a matrix that lie interleaved; kPanel of csrc/kernels.hpp
_EMBED, _HEAD = -1, -2  # places of matrices that belong to no layer

GROUPS = tuple(FUSED)  # order of the C++ operations' groups


def library_path() -> Path | None:
    """The operations' library, or None where the package was built without OpenVINO."""
    # Beside the compiled core: in an editable installation that is not where the sources are.
    path = Path(compllm._core.__file__).parent / "embedded" / _LIBRARY
    return path if path.is_file() else None


class DecoderTable:
    """The base's weights for the C++ operations, and adapter slots 1 .. num_slots; slot 0 is the
    base.

    Only the thread that runs inferences may change it, between two of them.
    """

    def __init__(self, weights: Weights, num_slots: int, library: Path) -> None:
        from openvino.utils.node_factory import NodeFactory

        self.weights = weights
        self.node_factory = NodeFactory()
        self.node_factory.add_extension(str(library))
        self._library = load_library(library)
        self._kept: list[NDArray[Any]] = []  # what the C++ side points to
        self._arena = Arena(
            [
                array
                for name, array in weights.arrays.items()
                if name.endswith(".weight") and array.ndim == 2
            ],
            self._library.compllm_group(),
        )
        s = weights.shape
        self.id = int(
            self._library.compllm_table_new(
                s.num_layers,
                s.hidden,
                s.intermediate,
                s.num_heads * s.head_dim,
                s.num_kv_heads * s.head_dim,
                s.head_dim,
                weights.rms_eps,
                num_slots,
            )
        )
        self.isa = self._library.compllm_isa().decode()
        embed = self._matrix("embed")
        self._place(_EMBED, embed)
        self._place(_HEAD, self._matrix("lm_head") if "lm_head.weight" in weights.arrays else embed)
        for layer in range(s.num_layers):
            for number, group in enumerate(GROUPS):
                self._place(layer * len(GROUPS) + number, self._matrix(f"{layer}.{group}"))
            self._norm(2 * layer, f"{layer}.input_norm")
            self._norm(2 * layer + 1, f"{layer}.post_norm")
            self._heads(layer)
        self._norm(2 * s.num_layers, "norm")

    def set(self, slot: int, adapter: Adapter) -> None:
        """Put an adapter into a slot, in place of what is there. About 10 ms at rank 8."""
        self.clear(slot)
        shape = self.weights.shape
        sizes = shape.module_shapes()
        for layer in range(shape.num_layers):
            for number, group in enumerate(GROUPS):
                modules, offsets, offset = [], [], 0
                for path in FUSED[group]:
                    name = path.rsplit(".", 1)[1]
                    if (module := adapter.modules.get((layer, name))) is not None:
                        modules.append(module)
                        offsets.append(offset)
                    offset += sizes[name][0]
                if modules:
                    self._set_group(slot, layer, number, modules, offsets)

    def clear(self, slot: int) -> None:
        """Empty a slot; its tokens are the base's from now on."""
        if self._library.compllm_adapter_clear(self.id, slot):
            raise EngineError(f"adapter slot {slot} does not exist")

    def set_cache(self, layer: int, keys: NDArray[Any], values: NDArray[Any]) -> None:
        """Set where a layer's keys and values are, [blocks, kv heads, tokens of a block, head_dim]
        in float16 or float32; the caller keeps them alive."""
        code = self._library.compllm_table_cache(
            self.id,
            layer,
            keys.shape[2],
            keys.dtype == np.float16,
            keys.ctypes.data,
            values.ctypes.data,
        )
        if code:
            raise AssertionError(f"no layer {layer}")

    def close(self) -> None:
        """Free the C++ side. Nothing may run with it any more."""
        self._library.compllm_table_free(self.id)
        self._kept.clear()

    def _matrix(self, name: str) -> tuple[Any, ...]:
        arrays = self.weights.arrays
        weight, scale, zero, bias = (
            arrays.get(f"{name}.{part}") for part in ("weight", "scale", "zero_point", "bias")
        )
        assert weight is not None
        rows, inputs = weight.shape
        if scale is None:
            half = self._arena.put(weight)
            return rows, inputs, None, half, None, None, self._keep(bias)
        assert zero is not None
        # Signed, so that the zero point is near 0 and little is lost when it is subtracted last.
        signed = self._arena.put(weight ^ np.uint8(128))
        zero_point = self._keep(zero.astype(np.float32).ravel() - 128)
        return rows, inputs, signed, None, self._keep(scale.ravel()), zero_point, self._keep(bias)

    def _keep(self, array: NDArray[Any] | None, dtype: Any = np.float32) -> int | None:
        if array is None:
            return None
        kept = np.ascontiguousarray(array, dtype)
        self._kept.append(kept)
        return kept.ctypes.data

    def _place(self, place: int, matrix: tuple[Any, ...]) -> None:
        if self._library.compllm_table_matrix(self.id, place, *matrix):
            raise AssertionError(f"no matrix at {place}")

    def _norm(self, place: int, name: str) -> None:
        weight = self._keep(self.weights.arrays[name])
        if self._library.compllm_table_norm(self.id, place, weight):
            raise AssertionError(f"no norm at {place}")

    def _heads(self, layer: int) -> None:
        """What happens to a layer's heads of queries and keys before they attend."""
        arrays = self.weights.arrays
        code = 0
        if f"{layer}.q_norm" in arrays:
            norms = (self._keep(arrays[f"{layer}.{name}_norm"]) for name in "qk")
            code |= self._library.compllm_table_head_norms(self.id, layer, *norms)
        if not self.weights.is_rotated(layer):
            code |= self._library.compllm_table_unrotated(self.id, layer)
        if code:
            raise AssertionError(f"no layer {layer}")

    def _set_group(
        self,
        slot: int,
        layer: int,
        group: int,
        modules: Sequence[LoraWeights],
        offsets: Sequence[int],
    ) -> None:
        a = _half(np.concatenate([m.a for m in modules]))
        b = np.concatenate([_half(m.b.T).ravel() for m in modules])
        code = self._library.compllm_adapter_set(
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
            (ctypes.c_float * len(modules))(*(m.scale for m in modules)),
        )
        if code:
            raise EngineError(f"adapter slot {slot}, layer {layer} does not exist")


class Arena:
    """All matrices in one allocation: numpy asks for huge pages where one is large, and reading
    every weight once per token misses the address cache far less often with them."""

    def __init__(self, matrices: Sequence[NDArray[Any]], group: int = 1) -> None:
        """group: 8-bit weights of a row that the kernels want side by side."""
        self._group = group
        sizes = (math.prod(self._panels(a)) * a.itemsize + _LINE for a in matrices)
        self._bytes = np.empty(sum(sizes) + _LINE, np.uint8)
        self._used = -self._bytes.ctypes.data % _LINE

    def put(self, matrix: NDArray[Any]) -> int:
        """Copy a matrix [rows, in] in as panels (csrc/kernels.hpp, `Matrix`), at the start of a
        cache line. Returns its address."""
        shape = self._panels(matrix)
        num_panels, num_groups, _, group = shape
        num_bytes = math.prod(shape) * matrix.itemsize
        place = self._bytes[self._used : self._used + num_bytes].view(matrix.dtype)
        rows, inputs = matrix.shape
        if (rows, inputs) != (num_panels * PANEL, num_groups * group):
            filled = np.zeros((num_panels * PANEL, num_groups * group), matrix.dtype)
            filled[:rows, :inputs] = matrix
            matrix = filled
        parts = matrix.reshape(num_panels, PANEL, num_groups, group)
        np.copyto(place.reshape(shape), parts.swapaxes(1, 2))
        self._used += -(-num_bytes // _LINE) * _LINE
        return place.ctypes.data

    def _panels(self, matrix: NDArray[Any]) -> tuple[int, int, int, int]:
        rows, inputs = matrix.shape
        group = self._group if matrix.itemsize == 1 else 1
        return -(-rows // PANEL), -(-inputs // group), PANEL, group


def load_library(path: Path) -> Any:
    """The library with its C functions' types. Raises ArtefactError."""
    # Our library finds OpenVINO's by name among those already loaded.
    import openvino  # noqa: F401

    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise ArtefactError(
            f"{path} cannot be loaded ({error}): it belongs to another OpenVINO release. "
            "Install compllm again beside this one, or choose the mask graph"
        ) from error
    number, pointer, table = ctypes.c_int, ctypes.c_void_p, ctypes.c_long
    ints = ctypes.POINTER(ctypes.c_int)
    library.compllm_table_new.restype = table
    library.compllm_table_new.argtypes = [*([number] * 6), ctypes.c_float, number]
    library.compllm_table_free.argtypes = [table]
    library.compllm_table_matrix.argtypes = [table, *([number] * 3), *([pointer] * 5)]
    library.compllm_table_norm.argtypes = [table, number, pointer]
    library.compllm_table_head_norms.argtypes = [table, number, pointer, pointer]
    library.compllm_table_unrotated.argtypes = [table, number]
    library.compllm_table_cache.argtypes = [table, *([number] * 3), *([pointer] * 2)]
    library.compllm_adapter_clear.argtypes = [table, number]
    library.compllm_adapter_set.argtypes = [
        table,
        *([number] * 4),
        *([pointer] * 2),
        number,
        *([ints] * 3),
        ctypes.POINTER(ctypes.c_float),
    ]
    library.compllm_isa.restype = ctypes.c_char_p
    library.compllm_group.restype = number
    return library


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    with np.errstate(over="ignore"):
        half = np.ascontiguousarray(values, np.float16)
    if not np.isfinite(half).all():
        raise ArtefactError("an adapter's weight is beyond half precision (65504)")
    return half


def _ints(values: Sequence[int]) -> Any:
    return (ctypes.c_int * len(values))(*values)
