"""An adapter as TensorRT-LLM's `lora_weights` and `lora_config` tensors, in both directions.

The client sends these when the engine asks for an adapter's weights; the embedded model reads
them. The layout is that of TensorRT-LLM's hf_lora_convert.py: one row per layer and module, A and B
one after the other, padded to the widest row; alpha / rank is folded into B.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compllm.errors import ArtefactError
from compllm.formats.adapters import (
    Adapter,
    LoraWeights,
    check_fits,
    load_adapter_npz,
    make_adapter,
)
from compllm.formats.manifest import Manifest
from compllm.formats.shape import BaseShape

# TensorRT-LLM's module ids by Hugging Face's names.
MODULE_IDS = {
    "q_proj": 1,
    "k_proj": 2,
    "v_proj": 3,
    "o_proj": 4,
    "gate_proj": 5,
    "down_proj": 6,
    "up_proj": 7,
}
_MODULES = {number: name for name, number in MODULE_IDS.items()}


def to_tensors(adapter: Adapter) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
    """float16 [rows, width] and int32 [rows, 4] of module id, layer, rank, is_dora."""
    rows = [
        np.concatenate([weights.a.reshape(-1), weights.folded_b.reshape(-1)])
        for weights in adapter.modules.values()
    ]
    packed = np.zeros((len(rows), max(map(len, rows))), np.float16)
    for target, row in zip(packed, rows, strict=True):
        target[: len(row)] = row
    config = [
        (MODULE_IDS[module], layer, weights.rank, 0)
        for (layer, module), weights in adapter.modules.items()
    ]
    return packed, np.array(config, np.int32)


def from_tensors(
    name: str, weights: NDArray[np.float16], config: NDArray[np.int32], base: BaseShape
) -> Adapter:
    """The adapter in these tensors. Raises ArtefactError when it does not fit `base`."""
    if config.shape != (len(weights), 4):
        raise ArtefactError(
            f"lora_config has shape {list(config.shape)} beside {len(weights)} rows of "
            "lora_weights: it takes module id, layer, rank and is_dora for each of them"
        )
    shapes = base.module_shapes()
    modules: dict[tuple[int, str], LoraWeights] = {}
    for row, numbers in zip(weights, config.tolist(), strict=True):
        module_id, layer, rank, is_dora = numbers
        module = _MODULES.get(module_id)
        if module is None:
            raise ArtefactError(
                f"lora module {module_id} not enabled for this model: it has "
                f"{', '.join(f'{number} ({each})' for number, each in sorted(_MODULES.items()))}"
            )
        if is_dora:
            raise ArtefactError("DoRA adapters are not supported: lora_config's is_dora must be 0")
        modules[layer, module] = _unpack(row, rank, shapes[module])
    try:
        check_fits(modules, base)
    except ArtefactError as error:
        raise ArtefactError(f"lora_weights do not fit: {error}") from error
    return make_adapter(name, modules)


def read_engine_adapter(
    engine_dir: Path, task_id: int
) -> tuple[NDArray[np.float16], NDArray[np.int32]] | None:
    """The tensors of an adapter that an engine directory holds; None when it holds none such.

    Raises ArtefactError when the directory is damaged.
    """
    for entry in Manifest.read(engine_dir).adapters:
        if entry.task_id == task_id:
            path = engine_dir / entry.file
            adapter = load_adapter_npz(path, read_base_shape(engine_dir))
            if adapter.task_id != task_id:  # an engine may hold the old weights under the old id
                raise ArtefactError(f"{path} is not adapter {entry.name}: build the engine again")
            return to_tensors(adapter)
    return None


def read_base_shape(engine_dir: Path) -> BaseShape:
    """The numbers of an engine directory's base. Raises ArtefactError when it is none."""
    path = engine_dir / "config.json"
    try:
        return BaseShape.from_config(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ArtefactError(f"{engine_dir} is no engine directory: {path}: {error}") from error


def _unpack(row: NDArray[Any], rank: int, shape: tuple[int, int]) -> LoraWeights:
    num_out, num_in = shape
    split, size = rank * num_in, rank * (num_in + num_out)
    if rank < 1 or size > len(row):
        raise ArtefactError(
            f"Invalid low_rank ({rank}): a row of {len(row)} holds at most rank "
            f"{len(row) // (num_in + num_out)} here"
        )
    values = row.astype(np.float32)
    return LoraWeights(
        values[:split].reshape(rank, num_in), values[split:size].reshape(num_out, rank)
    )
