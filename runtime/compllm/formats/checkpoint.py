"""Is this directory a Hugging Face checkpoint that an engine can be built from? Loads nothing.

Stands before the engine build and before training: both take `base_dir()` or any directory that
passes here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from compllm.errors import ArtefactError
from compllm.formats.shape import BaseShape, model_name

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")  # always needed
OPTIONAL_TOKENIZER_FILES = ("chat_template.jinja", "special_tokens_map.json")  # copied when there
_INDEX = "model.safetensors.index.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ArtefactError that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ArtefactError(f"{path} is missing") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ArtefactError(f"{path} holds a {type(value).__name__}, not an object")
    return value


def validate_checkpoint(directory: Path, supported: tuple[str, ...] = ARCHITECTURES) -> BaseShape:
    """The shape of the model in `directory`. Raises ArtefactError when it cannot be used.

    supported: architectures; the default is what every engine takes.
    """
    if not directory.is_dir():
        raise ArtefactError(f"checkpoint {directory} is not a directory")
    config = read_json(directory / "config.json")
    architectures = config.get("architectures") or []
    if not any(name in supported for name in architectures):
        seen = ", ".join(map(str, architectures)) or "model of unknown architecture"
        raise ArtefactError(
            f"checkpoint {directory} is a {seen}; supported are {', '.join(supported)}"
        )
    if "quantization_config" in config:
        raise ArtefactError(
            f"checkpoint {directory} is quantised already ({config['quantization_config']}): "
            "give the full-precision checkpoint, the engine build quantises it itself"
        )
    shape = BaseShape.from_config(config, name=model_name(str(directory.resolve())))
    for file in TOKENIZER_FILES:
        read_json(directory / file)
    _check_tensors(directory, shape, is_tied=bool(config.get("tie_word_embeddings", False)))
    return shape


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


def _check_tensors(directory: Path, shape: BaseShape, *, is_tied: bool) -> None:
    """Every matrix the graph is built from is there in the shape that config.json promises."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for file in weight_files(directory):
        try:
            with safe_open(file, framework="numpy") as handle:
                shapes |= {name: handle.get_slice(name).get_shape() for name in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ArtefactError(f"{file} is damaged: {error}") from error
    for name, expected in _expected_tensors(shape, is_tied=is_tied):
        if name not in shapes:
            raise ArtefactError(f"checkpoint {directory} has no tensor {name}")
        if tuple(shapes[name]) != expected:
            raise ArtefactError(
                f"checkpoint {directory}: {name} is {shapes[name]}, "
                f"config.json says {list(expected)}"
            )


def _expected_tensors(shape: BaseShape, *, is_tied: bool) -> Iterable[tuple[str, tuple[int, ...]]]:
    yield "model.embed_tokens.weight", (shape.vocab, shape.hidden)
    yield "model.norm.weight", (shape.hidden,)
    if not is_tied:
        yield "lm_head.weight", (shape.vocab, shape.hidden)
    for layer in range(shape.num_layers):
        for module, (num_out, num_in) in shape.module_shapes().items():
            block = "self_attn" if module in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
            yield f"model.layers.{layer}.{block}.{module}.weight", (num_out, num_in)
