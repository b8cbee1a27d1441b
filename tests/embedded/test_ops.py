"""Products of the C++ kernels, each instruction set in a process of its own, against fp64."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import openvino
import pytest
from numpy.typing import NDArray
from openvino import opset13 as ops
from openvino.utils.node_factory import NodeFactory

from compllm.embedded.ops import Arena, library_path, load_library

ISAS = ("generic", "avx2", "avx512", "vnni")  # what is not there becomes a lesser one
# Rows and inputs of no multiple of anything, of a panel, and as large as matrices are.
SHAPES = ((37, 50), (16, 4), (33, 1537), (1, 1))
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 17)

Floats = NDArray[np.float32]


class Product:
    """An 8-bit matrix with a bias in a table, and the operation that multiplies with it."""

    def __init__(self, rows: int, inputs: int) -> None:
        library = library_path()
        assert library is not None
        rng = np.random.default_rng(rows)
        self.q = rng.integers(-128, 128, (rows, inputs), np.int8)
        self.scale = rng.uniform(0.5, 1.5, rows).astype(np.float32)
        self.zero_point = rng.uniform(-9, 9, rows).astype(np.float32)
        self.bias = rng.standard_normal(rows).astype(np.float32)
        calls = load_library(library)
        table = int(calls.compllm_table_new(1, 1, 1, 1, 1, 1, 0.0, 0))
        self._arena = Arena([self.q], calls.compllm_group())
        pointers = (each.ctypes.data for each in (self.scale, self.zero_point, self.bias))
        assert not calls.compllm_table_matrix(
            table, 0, rows, inputs, self._arena.put(self.q), None, *pointers
        )
        core = openvino.Core()
        core.add_extension(str(library))
        factory = NodeFactory()
        factory.add_extension(str(library))
        x = ops.parameter([-1, inputs], np.float32)
        attributes = {"table": table, "place": 0, "rows": rows}
        product = factory.create("Linear", [x.output(0)], attributes)
        self._model = core.compile_model(openvino.Model([product], [x]), "CPU")

    def run(self, x: Floats) -> Floats:
        found: Floats = self._model(x)[0].copy()
        return found

    def error(self, x: Floats) -> float:
        """The largest, over what sums of floats of this size may be off."""
        weight = (self.q - self.zero_point[:, None].astype(np.float64)) * self.scale[:, None]
        true = x @ weight.T + self.bias
        size = np.abs(x).max(axis=1)[:, None] * np.linalg.norm(weight, axis=1) + np.abs(true) + 1
        return float((np.abs(self.run(x) - true) / size).max())


def inputs_of(tokens: int, inputs: int) -> Floats:
    """Some with one input that dwarfs the others, as what a down projection reads has."""
    x = np.random.default_rng(tokens).standard_normal((tokens, inputs)).astype(np.float32)
    x[::2, -1] *= 1e4
    x[tokens // 2] *= 1e-6
    return x


def measure() -> None:
    """What the test's processes do."""
    errors = {}
    for rows, inputs in SHAPES:
        product = Product(rows, inputs)
        for tokens in TOKENS:
            x = inputs_of(tokens, inputs)
            errors[f"{rows}, {inputs}, {tokens}"] = product.error(x)
            # A token's outputs do not depend on its neighbours, to the bit.
            alone = np.concatenate([product.run(x[place : place + 1]) for place in range(tokens)])
            assert (product.run(x) == alone).all()
        zeros = product.run(np.zeros((2, inputs), np.float32))
        assert (zeros == product.bias).all()
        for odd in (np.nan, np.inf):
            x = inputs_of(2, inputs)
            x[1, 0] = odd
            found = product.run(x)
            assert np.isfinite(found[0]).all()
            assert not np.isfinite(found[1]).any()
    library = library_path()
    assert library is not None
    print(json.dumps([load_library(library).compllm_isa().decode(), errors]))


@pytest.mark.parametrize("isa", ISAS)
def test_a_product_of_8_bit_weights_is_as_exact_as_floats_are(isa: str) -> None:
    env = {**os.environ, "COMPLLM_ISA": isa, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", "from test_ops import measure; measure()"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    name, errors = json.loads(run.stdout)
    assert ISAS.index(name) <= ISAS.index(isa)
    # Sums of integers are exact: what is left is the rounding of the inputs.
    assert max(errors.values()) < (2e-7 if name == "vnni" else 1e-6), errors
