"""Is this directory a Hugging Face checkpoint that an engine can be built from? Loads nothing.

Stands before the engine build and before training: both take `base_dir()` or any directory that
passes here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compllm.errors import ArtefactError
from compllm.formats.json_files import read_json
from compllm.formats.model_config import ARCHITECTURES, DecoderConfig, check_config
from compllm.formats.shape import ATTENTION_MODULES, BaseShape, model_name
from compllm.formats.tokenizer_files import check_tokenizer

FLOATS = ("F64", "F32", "F16", "BF16")  # types of tensors that are read
_INDEX = "model.safetensors.index.json"
_EMBEDDING = "model.embed_tokens.weight"
_BUFFER = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")  # computed anew


def validate_checkpoint(directory: Path, supported: tuple[str, ...] = ARCHITECTURES) -> BaseShape:
    """The shape of the model in `directory`. Raises ArtefactError when it cannot be used.

    supported: architectures; the default is what every engine takes.
    """
    if not directory.is_dir():
        raise ArtefactError(f"checkpoint {directory} is not a directory")
    config = read_json(directory / "config.json")
    try:
        name = model_name(str(directory.resolve()))
        decoder = check_config(config, name=name, supported=supported)
    except ArtefactError as error:
        raise ArtefactError(f"checkpoint {directory}: {error}") from error
    check_tokenizer(directory, decoder.shape.vocab)
    _check_tensors(directory, decoder)
    return decoder.shape


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The safetensors files of a checkpoint, sorted. Raises ArtefactError when one is missing."""
    if (directory / _INDEX).is_file():
        weight_map = read_json(directory / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ArtefactError(f"{directory / _INDEX} has no weight_map")
        names = sorted({str(name) for name in weight_map.values()})
        if any(Path(name).name != name for name in names):
            raise ArtefactError(f"{directory / _INDEX} names files outside its folder")
        files = [directory / name for name in names]
    else:
        files = [directory / "model.safetensors"]
    for file in files:
        if not file.is_file():
            hint = " (only safetensors are read: convert with save_pretrained)"
            raise ArtefactError(f"{file} is missing{hint}")
    return tuple(files)


def tensor_files(directory: Path) -> dict[str, Path]:
    """The file of each tensor, as the files themselves say. Raises ArtefactError."""
    return {name: tensor.file for name, tensor in _read_headers(directory).items()}


def read_tensor(file: Path, name: str) -> NDArray[np.float32]:
    """One tensor as float32, also of bfloat16. Raises ArtefactError."""
    from safetensors import SafetensorError, safe_open

    try:
        # numpy knows no bfloat16: torch reads every type.
        with safe_open(file, framework="pt") as handle:
            array: NDArray[np.float32] = handle.get_tensor(name).float().numpy()
    except (SafetensorError, OSError) as error:
        raise ArtefactError(f"{file} is damaged: {error}") from error
    return array


@dataclass(frozen=True, slots=True)
class _Tensor:
    file: Path
    dtype: str
    shape: tuple[int, ...]


def _read_headers(directory: Path) -> dict[str, _Tensor]:
    from safetensors import SafetensorError, safe_open

    found: dict[str, _Tensor] = {}
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="numpy") as handle:
                for name in handle.keys():  # noqa: SIM118
                    part = handle.get_slice(name)
                    found[name] = _Tensor(file, part.get_dtype(), tuple(part.get_shape()))
        except (SafetensorError, OSError) as error:
            raise ArtefactError(f"{file} is damaged: {error}") from error
    return found


def _check_tensors(directory: Path, decoder: DecoderConfig) -> None:
    """The files hold each tensor that the graph is built from, in the shape that config.json
    promises, and no other that would change what the model computes."""
    found = _read_headers(directory)
    expected = dict(_expected_tensors(decoder))
    for name, size in expected.items():
        if name not in found:
            raise ArtefactError(
                f"checkpoint {directory} has no tensor {name}{_wrapper_hint(name, found)}"
            )
        tensor = found[name]
        if tensor.dtype not in FLOATS:
            raise ArtefactError(
                f"checkpoint {directory}: {name} is of type {tensor.dtype}; read are "
                f"{', '.join(FLOATS)}: give the full-precision checkpoint"
            )
        if tensor.shape != size:
            raise ArtefactError(
                f"checkpoint {directory}: {name} is {list(tensor.shape)}, "
                f"config.json says {list(size)}"
            )
    for name in sorted(found.keys() - expected.keys()):
        _check_left_out(directory, name, found, decoder)


def _wrapper_hint(name: str, found: Mapping[str, _Tensor]) -> str:
    for other in found:
        if other != name and other.endswith(f".{name}"):
            return (
                f", but {other}: save the model that was wrapped "
                f"(without {other.removesuffix(name)!r} before its names)"
            )
    return ""


def _check_left_out(
    directory: Path, name: str, found: Mapping[str, _Tensor], decoder: DecoderConfig
) -> None:
    """A tensor that no part of the model takes. Raises ArtefactError unless it says nothing."""
    if _BUFFER.fullmatch(name):
        return
    if name == "lm_head.weight" and decoder.is_tied:
        head, embedding = (read_tensor(found[each].file, each) for each in (name, _EMBEDDING))
        if not np.array_equal(head, embedding):
            raise ArtefactError(
                f"checkpoint {directory}: {name} differs from {_EMBEDDING}, but config.json says "
                "tie_word_embeddings: set that to false if the model was trained so, else save it "
                f"without {name}"
            )
        return
    reason = "config.json says that there are no such biases (attention_bias, mlp_bias)"
    if not name.endswith(".bias"):
        reason = "no part of the model takes it"
    raise ArtefactError(
        f"checkpoint {directory}: tensor {name} is not known: {reason}. "
        "transformers would leave it out: if that is right, save the checkpoint without it"
    )


def _expected_tensors(decoder: DecoderConfig) -> Iterable[tuple[str, tuple[int, ...]]]:
    shape = decoder.shape
    yield _EMBEDDING, (shape.vocab, shape.hidden)
    yield "model.norm.weight", (shape.hidden,)
    if not decoder.is_tied:
        yield "lm_head.weight", (shape.vocab, shape.hidden)
    for layer in range(shape.num_layers):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"model.layers.{layer}.{norm}.weight", (shape.hidden,)
        for module, (num_out, num_in) in shape.module_shapes().items():
            block = "self_attn" if module in ATTENTION_MODULES else "mlp"
            yield f"model.layers.{layer}.{block}.{module}.weight", (num_out, num_in)
            if module in decoder.biased:
                yield f"model.layers.{layer}.{block}.{module}.bias", (num_out,)
        for norm in ("q_norm", "k_norm") if decoder.has_head_norms else ():
            yield f"model.layers.{layer}.self_attn.{norm}.weight", (shape.head_dim,)
