"""Adapters on their way into hf_lora_convert, and what came out of it.

The converter scales B by lora_alpha over the tensor's own rank, drops tensors whose names end in
`.default.weight` with no more than a print, and ignores rank_pattern, alpha_pattern and what else
adapter_config.json may hold. So it never sees the user's directory: `write_prepared` writes the
validated factors in the one form that it reads without a choice to make. `check_converted` compares
every number it wrote with our own packing of the same adapter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compllm.build_scripts.trtllm import flags
from compllm.errors import ArtefactError
from compllm.formats.adapters import WEIGHTS_FILE, Adapter
from compllm.formats.lora_tensors import to_tensors
from compllm.formats.shape import ATTENTION_MODULES, BaseShape

WEIGHTS_NPY = "model.lora_weights.npy"  # float16 [1, rows, width]
CONFIG_NPY = "model.lora_config.npy"  # int32 [1, rows, 4]
# All of a group or none: q, k and v are one product in the engine, and the fused gated MLP applies
# adapters only where it has both of its halves.
_GROUPS = (("attn_q", "attn_k", "attn_v"), ("mlp_h_to_4h", "mlp_gate"))


def target_modules(adapters: Iterable[Adapter]) -> tuple[str, ...]:
    """TensorRT-LLM's names of the modules that any adapter changes, completed to whole groups."""
    names = flags.lora_modules()
    wanted = {names[module] for adapter in adapters for _, module in adapter.modules}
    for group in _GROUPS:
        if wanted.intersection(group):
            wanted.update(group)
    ids = flags.lora_module_ids()
    return tuple(sorted(wanted, key=ids.__getitem__))


def check_ranks(adapter: Adapter, shape: BaseShape, max_rank: int) -> None:
    """Raises ArtefactError when the engine, or the converter, could not take the adapter's ranks.

    max_rank: the engine's; 0 takes what the adapters have.
    """
    if max_rank and adapter.rank > max_rank:
        raise ArtefactError(
            f"adapter {adapter.name} has rank {adapter.rank}, lora.max_rank is {max_rank}: "
            "raise it, or set it to 0 to take the largest rank there is"
        )
    sizes = shape.module_shapes()
    for (layer, module), weights in adapter.modules.items():
        # The converter takes the smaller side of a matrix for the rank.
        if weights.rank > min(sizes[module]):
            raise ArtefactError(
                f"adapter {adapter.name}: layer {layer} {module} has rank {weights.rank}, more "
                f"than the {min(sizes[module])} of the layer itself: TensorRT-LLM cannot take it"
            )


def write_prepared(adapter: Adapter, directory: Path) -> None:
    """A PEFT directory of these factors for the converter; `directory` exists and is empty."""
    from safetensors.numpy import save_file

    tensors: dict[str, NDArray[Any]] = {}
    for (layer, module), weights in adapter.modules.items():
        block = "self_attn" if module in ATTENTION_MODULES else "mlp"
        path = f"base_model.model.model.layers.{layer}.{block}.{module}"
        tensors[f"{path}.lora_A.weight"] = np.ascontiguousarray(weights.a, np.float32)
        # B carries the whole scale; the converter will multiply it by adapter.rank / weights.rank.
        undone = np.float32(weights.rank / adapter.rank)
        tensors[f"{path}.lora_B.weight"] = np.ascontiguousarray(weights.folded_b * undone)
    save_file(tensors, directory / WEIGHTS_FILE)
    config = {
        "peft_type": "LORA",
        "r": adapter.rank,
        "lora_alpha": adapter.rank,
        "use_rslora": False,
        "target_modules": sorted({module for _, module in adapter.modules}),
    }
    text = json.dumps(config, indent=2) + "\n"
    (directory / "adapter_config.json").write_text(text, encoding="utf-8")


def check_converted(adapter: Adapter, directory: Path) -> None:
    """Raises ArtefactError unless `directory` holds this adapter as the engine will read it."""
    weights, config = (_load(directory / name) for name in (WEIGHTS_NPY, CONFIG_NPY))
    if weights.ndim != 3 or config.ndim != 3 or config.shape != (1, weights.shape[1], 4):
        raise ArtefactError(
            f"adapter {adapter.name}: hf_lora_convert wrote weights {list(weights.shape)} and "
            f"config {list(config.shape)}, expected are [1, rows, width] and [1, rows, 4]"
        )
    if weights.dtype != np.float16 or config.dtype != np.int32:
        raise ArtefactError(
            f"adapter {adapter.name}: hf_lora_convert wrote {weights.dtype} weights and "
            f"{config.dtype} config, expected are float16 and int32"
        )
    expected, actual = _rows(*to_tensors(adapter)), _rows(weights[0], config[0])
    if expected.keys() != actual.keys():
        odd = sorted(expected.keys() ^ actual.keys())[0]
        raise ArtefactError(
            f"adapter {adapter.name}: hf_lora_convert wrote {len(actual)} modules of "
            f"{len(expected)}; module {odd[0]} of layer {odd[1]}, rank {odd[2]}, differs"
        )
    for key, row in expected.items():
        size = min(len(row), len(actual[key]))
        padding = (*row[size:], *actual[key][size:])
        is_close = np.allclose(row[:size], actual[key][:size], rtol=2e-3, atol=1e-6)
        if not is_close or any(padding):
            raise ArtefactError(
                f"adapter {adapter.name}: hf_lora_convert wrote other numbers than the adapter "
                f"has for module {key[0]} of layer {key[1]}"
            )


def _rows(
    weights: NDArray[Any], config: NDArray[Any]
) -> Mapping[tuple[int, int, int, int], NDArray[Any]]:
    """Row by (module id, layer, rank, is_dora): their order is the converter's business."""
    return {
        (int(numbers[0]), int(numbers[1]), int(numbers[2]), int(numbers[3])): row.astype(np.float32)
        for row, numbers in zip(weights, config, strict=True)
    }


def _load(path: Path) -> NDArray[Any]:
    try:
        with open(path, "rb") as handle:
            array: NDArray[Any] = np.load(handle, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ArtefactError(f"{path} is missing or damaged: {error}") from error
    return array
