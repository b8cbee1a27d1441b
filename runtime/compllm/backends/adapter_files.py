"""Where a client finds the weights of adapters that an engine asks for.

Stands behind `lora_client.py`. Two kinds of directories hold them: an embedded engine, and the
folders that TensorRT-LLM's hf_lora_convert.py writes, named by task id.
A task id is of an adapter's name and content (`embedded.adapters.Adapter.task_id`), so that a
changed adapter never meets an old one's cache entry.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compllm.backends.lora_client import AdapterWeights
from compllm.backends.tokenizer import Tokenizer
from compllm.backends.wire import AdapterTensors
from compllm.config import ServerConfig
from compllm.errors import ConfigError

WEIGHTS_FILE, CONFIG_FILE = "model.lora_weights.npy", "model.lora_config.npy"


def weights_in(directory: Path) -> AdapterWeights | None:
    """The adapters of this directory by task id; None where it holds none of either kind."""
    if is_embedded_engine(directory):
        from compllm.formats.lora_tensors import read_engine_adapter

        return lambda task_id: read_engine_adapter(directory, task_id)
    if any(directory.glob(f"[0-9]*/{WEIGHTS_FILE}")):
        return lambda task_id: read_converted(directory / str(task_id))
    return None


def named_weights(directory: Path) -> AdapterWeights:
    """Of the folder that the setting server.adapters_dir names. Raises ConfigError where it holds
    no adapters: those of the engine would be sent in their place."""
    if (weights := weights_in(directory)) is None:
        what = "is not there" if not directory.exists() else "holds no adapters"
        raise ConfigError(
            f"server.adapters_dir = {str(directory)!r} {what}: name the folder of an embedded "
            f"engine, or one with folders <task id>/{WEIGHTS_FILE}, or leave the setting out"
        )
    return weights


def check_server_files(server: ServerConfig) -> None:
    """What the settings name for a server on this machine. Raises ConfigError: found by `comp_llm`
    alone, it would be an error of every question."""
    if server.adapters_dir:
        named_weights(Path(server.adapters_dir))
    if server.tokenizer:
        try:
            Tokenizer.from_dir(server.tokenizer)
        except ConfigError as error:
            raise ConfigError(f"server.tokenizer = {server.tokenizer!r}: {error}") from error


def converted_beside(engine: Path) -> Path:
    """Where build_trtllm.py puts the adapters of the engine in this directory."""
    return engine.parent / "adapters"


def is_embedded_engine(directory: Path) -> bool:
    """Engines of other kinds have a manifest.json too: its format tells them apart."""
    try:
        manifest = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    form = manifest.get("format") if isinstance(manifest, dict) else None
    return isinstance(form, str) and form.startswith("compllm-engine/")


def read_converted(directory: Path) -> AdapterTensors | None:
    """What hf_lora_convert.py wrote: float16 [rows, width], int32 [rows, 4]; None if not there.

    Raises ConfigError for other shapes or types. Configurations of three columns (before DoRA) get
    the fourth.
    """
    if not (directory / WEIGHTS_FILE).is_file():
        return None
    weights = _squeezed(_read(directory / WEIGHTS_FILE))
    config = _squeezed(_read(directory / CONFIG_FILE))
    if config.ndim == 2 and config.shape[1] == 3:
        config = np.pad(config, ((0, 0), (0, 1)))
    if weights.dtype != np.float16 or weights.ndim != 2:
        raise ConfigError(
            f"{directory / WEIGHTS_FILE} is {weights.dtype} {list(weights.shape)}: the tensor is "
            "float16 [rows, width]; convert with --storage-type float16"
        )
    if config.dtype != np.int32 or config.shape != (len(weights), 4):
        raise ConfigError(
            f"{directory / CONFIG_FILE} is {config.dtype} {list(config.shape)}: beside "
            f"{len(weights)} rows of weights the tensor is int32 [{len(weights)}, 4]"
        )
    return np.ascontiguousarray(weights), np.ascontiguousarray(config)


def _squeezed(array: NDArray[Any]) -> NDArray[Any]:
    """Without the batch dimension that the converter adds."""
    return array[0] if array.ndim == 3 and array.shape[0] == 1 else array


def _read(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path} is not readable ({error}): convert the adapter again") from error
    return array
