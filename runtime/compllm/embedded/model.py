"""A checkpoint's weights in the form the embedded engine computes with: int8 rows or fp16, one
file.

`build_base` stands behind `build_openvino.py`; `Weights.load` gives the arrays to `network.py`,
which makes OpenVINO graphs of them. Projections that share an input (q, k, v and gate, up) are
stored as one matrix.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compllm.errors import ArtefactError
from compllm.formats.checkpoint import read_tensor, tensor_files
from compllm.formats.model_config import check_config, rms_norm_eps
from compllm.formats.shape import BaseShape

WEIGHTS_FILE = "weights.safetensors"
DTYPES = ("int8", "fp16")
_MAX_HALF = 65504.0  # the largest number in half precision

# name of a stored matrix -> the checkpoint's modules it holds, top to bottom
FUSED = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Weights:
    """Arrays by name. `X.weight` is u8 [out, in] with `X.zero_point` u8 [out, 1] and `X.scale`
    f16 [out, 1], or f16 without them; `X.bias` f32 [out] where there is one. Norms and
    `rope.inv_freq` are f32. `LAYER.q_norm` and `LAYER.k_norm` are there where heads are normed,
    `rope.layers` u8 [layers] where some layers are not rotated (0).
    """

    shape: BaseShape
    arrays: Mapping[str, Array]
    rms_eps: float
    rope_scaling: float  # factor on cos and sin; 1 but for some long-context variants
    max_seq_len: int

    def is_rotated(self, layer: int) -> bool:
        """Whether the layer's queries and keys have rotary embeddings."""
        layers = self.arrays.get("rope.layers")
        return layers is None or bool(layers[layer])

    @classmethod
    def load(cls, engine_dir: Path) -> Weights:
        """Raises ArtefactError when the directory holds no readable engine."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = engine_dir / WEIGHTS_FILE
        try:
            config = json.loads((engine_dir / "config.json").read_text())
            arrays = load_file(path)
        except FileNotFoundError as error:
            raise ArtefactError(
                f"{engine_dir} is not an engine directory: {error.filename} is missing. "
                "Build one with build_openvino.py"
            ) from error
        except (OSError, ValueError, SafetensorError) as error:
            raise ArtefactError(
                f"{path} cannot be read: {error}. Build the engine again"
            ) from error
        return cls(
            shape=BaseShape.from_config(config),
            arrays=arrays,
            rms_eps=rms_norm_eps(config),
            rope_scaling=float(arrays["rope.scaling"][0]),
            max_seq_len=int(config["max_position_embeddings"]),
        )


def build_base(checkpoint_dir: Path, out_dir: Path, dtype: str = "int8") -> None:
    """Write `weights.safetensors` of a validated checkpoint into an existing `out_dir`.

    Peak memory is about one and a half copies of the result. Raises ArtefactError for an unknown
    dtype or a tensor that is missing or not finite.
    """
    from safetensors.numpy import save_file

    if dtype not in DTYPES:
        raise ArtefactError(f"dtype {dtype!r} is not known; known are {', '.join(DTYPES)}")
    config = json.loads((checkpoint_dir / "config.json").read_text())
    decoder = check_config(config)
    shape = decoder.shape
    inv_freq, scaling = _rope(checkpoint_dir)
    read = _reader(checkpoint_dir, dtype)
    arrays: dict[str, Array] = {}

    def put(name: str, weight: NDArray[np.float32]) -> None:
        if dtype == "int8":
            quantised, zero_point, scale = quantise_rows(weight)
            arrays[f"{name}.weight"] = quantised
            arrays[f"{name}.zero_point"] = zero_point
            arrays[f"{name}.scale"] = scale
        else:
            arrays[f"{name}.weight"] = weight.astype(np.float16)

    put("embed", read("model.embed_tokens.weight"))
    for layer in range(shape.num_layers):
        prefix = f"model.layers.{layer}"
        for name, modules in FUSED.items():
            put(
                f"{layer}.{name}",
                np.concatenate([read(f"{prefix}.{m}.weight") for m in modules]),
            )
            biases = [read(f"{prefix}.{m}.bias", is_optional=True) for m in modules]
            if any(b.size for b in biases):
                arrays[f"{layer}.{name}.bias"] = np.concatenate(
                    [
                        b if b.size else np.zeros(rows, np.float32)
                        for b, rows in zip(biases, _rows(shape, modules), strict=True)
                    ]
                )
        arrays[f"{layer}.input_norm"] = read(f"{prefix}.input_layernorm.weight")
        arrays[f"{layer}.post_norm"] = read(f"{prefix}.post_attention_layernorm.weight")
        for head_norm in ("q_norm", "k_norm") if decoder.has_head_norms else ():
            arrays[f"{layer}.{head_norm}"] = read(f"{prefix}.self_attn.{head_norm}.weight")
    arrays["norm"] = read("model.norm.weight")
    if not decoder.is_tied:
        put("lm_head", read("lm_head.weight"))
    arrays["rope.inv_freq"] = inv_freq
    arrays["rope.scaling"] = np.array([scaling], np.float32)
    if not all(decoder.rotated):
        arrays["rope.layers"] = np.array(decoder.rotated, np.uint8)
    save_file(arrays, out_dir / WEIGHTS_FILE, metadata={"dtype": dtype})


def quantise_rows(
    weight: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float16]]:
    """Asymmetric 8 bit per output row: weight is about (q - zero_point) * scale."""
    low = np.minimum(weight.min(axis=1, keepdims=True), 0.0)
    high = np.maximum(weight.max(axis=1, keepdims=True), 0.0)
    # The scale is rounded to half first, so that quantising and computing use the same one.
    scale = np.maximum((high - low) / 255.0, 1e-7).astype(np.float16)
    step = scale.astype(np.float32)
    zero_point = np.clip(np.rint(-low / step), 0, 255)
    quantised = np.clip(np.rint(weight / step) + zero_point, 0, 255)
    return quantised.astype(np.uint8), zero_point.astype(np.uint8), scale


def _rows(shape: BaseShape, modules: tuple[str, ...]) -> Iterator[int]:
    sizes = shape.module_shapes()
    return (sizes[m.rsplit(".", 1)[1]][0] for m in modules)


def _rope(checkpoint_dir: Path) -> tuple[NDArray[np.float32], float]:
    """Inverse frequencies with the checkpoint's rope scaling, as transformers computes them."""
    from transformers import AutoConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    try:
        config = AutoConfig.from_pretrained(checkpoint_dir)
        rotary = LlamaRotaryEmbedding(config)
    except Exception as error:  # transformers checks types with exceptions of many kinds
        raise ArtefactError(
            f"checkpoint {checkpoint_dir}: transformers cannot use its config.json: {error}"
        ) from error
    return rotary.inv_freq.numpy().astype(np.float32), float(rotary.attention_scaling)


def _reader(checkpoint_dir: Path, dtype: str) -> Callable[..., NDArray[np.float32]]:
    """Reads one tensor as float32 from a single or sharded safetensors checkpoint."""
    files = tensor_files(checkpoint_dir)

    def read(name: str, *, is_optional: bool = False) -> NDArray[np.float32]:
        if name not in files:
            if is_optional:
                return np.zeros(0, np.float32)
            raise ArtefactError(f"checkpoint {checkpoint_dir} has no tensor {name}")
        array = read_tensor(files[name], name)
        where = f"checkpoint {checkpoint_dir}: tensor {name} (in {files[name].name})"
        if not np.isfinite(array).all():
            raise ArtefactError(f"{where} holds NaN or infinity")
        # Eight bits have a scale in half precision for each row.
        largest, limit = float(np.abs(array).max(initial=0)), _MAX_HALF
        if dtype == "int8" and array.ndim == 2:
            largest = float((np.maximum(array.max(1), 0) - np.minimum(array.min(1), 0)).max())
            limit = 255 * _MAX_HALF
        if array.ndim == 2 and largest > limit:
            raise ArtefactError(
                f"{where} reaches {largest:.3g}, beyond what {dtype} weights hold ({limit:.3g})"
            )
        return array

    return read
