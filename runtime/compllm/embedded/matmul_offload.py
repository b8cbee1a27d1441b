"""Products with constant matrices in an OpenVINO graph, moved to the engine's own kernels.

`embed.py` does so with the sentence encoder: one short question reads every weight for a dozen
tokens, so halves, which are half as much to read, and kernels made for few tokens take a fifth
off its time on AVX2 (docs/EVIDENCE.md). The arithmetic stays fp32.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compllm.embedded.ops import GROUPS, Arena, library_path, load_library

# Where our kernels were measured to be faster than OpenVINO's products.
FASTER_ON = ("avx2",)


def offload_matmuls(model: Any, core: Any) -> OffloadedMatmuls | None:
    """Replace what can be replaced in an openvino.Model that `core` will compile. Keep what is
    returned for as long as it runs.

    None, and the model as it was, where the library was not built, this processor gains nothing or
    the model has no such product.
    """
    library = library_path()
    if library is None or load_library(library).compllm_isa().decode() not in FASTER_ON:
        return None
    found = [(node, half) for node in model.get_ordered_ops() if (half := _half(node)) is not None]
    if not found:
        return None
    core.add_extension(str(library))
    return OffloadedMatmuls(model, found, library)


class OffloadedMatmuls:
    """The matrices of a graph's products as halves, and their biases, for the C++ side."""

    def __init__(
        self, model: Any, products: list[tuple[Any, NDArray[np.float16]]], library: Path
    ) -> None:
        from openvino.utils.node_factory import NodeFactory

        factory = NodeFactory()
        factory.add_extension(str(library))
        calls = load_library(library)
        self.num_matmuls = len(products)
        self._kept: list[NDArray[np.float32]] = []  # what the C++ side points to
        # A table's places come in layers; of a decoder's other sizes nothing is used here.
        num_layers = -(-len(products) // len(GROUPS))
        table = int(calls.compllm_table_new(num_layers, 1, 1, 1, 1, 1, 0.0, 0))
        # Not at the interpreter's end, where a thread may still encode.
        weakref.finalize(self, calls.compllm_table_free, table).atexit = False
        self._arena = Arena([half for _, half in products])
        for place, (node, half) in enumerate(products):
            rows, inputs = half.shape
            last, bias = _with_bias(node, rows)
            if bias is not None:
                self._kept.append(bias)
            code = calls.compllm_table_matrix(
                table,
                place,
                rows,
                inputs,
                None,
                self._arena.put(half),
                None,
                None,
                None if bias is None else bias.ctypes.data,
            )
            if code:
                raise AssertionError(f"no matrix at {place}")
            attributes = {"table": table, "place": place, "rows": rows}
            ours = factory.create("Linear", [node.input_value(0)], attributes)
            last.output(0).replace(ours.output(0))
        model.validate_nodes_and_infer_types()


def _half(node: Any) -> NDArray[np.float16] | None:
    """The matrix [rows, in] of a product x W^T that our kernels can take over."""
    if node.get_type_name() != "MatMul":
        return None
    turned = node.get_attributes()
    weight = node.input_value(1).get_node()
    if turned["transpose_a"] or not turned["transpose_b"] or weight.get_type_name() != "Constant":
        return None
    data: NDArray[np.float32] = weight.get_data()
    if data.ndim != 2 or data.dtype != np.float32:
        return None
    with np.errstate(over="ignore"):
        half = data.astype(np.float16)
    return half if np.isfinite(half).all() else None


def _with_bias(node: Any, rows: int) -> tuple[Any, NDArray[np.float32] | None]:
    """The node that ends the product, and its bias: that of the addition behind it, if that is all
    that reads the product."""
    readers = list(node.output(0).get_target_inputs())
    if len(readers) == 1 and (addition := readers[0].get_node()).get_type_name() == "Add":
        other = addition.input_value(1 - readers[0].get_index()).get_node()
        if other.get_type_name() == "Constant":
            data = other.get_data()
            if data.shape[-1:] == (rows,) and data.size == rows:
                return addition, np.array(data, np.float32).ravel()
    return node, None
