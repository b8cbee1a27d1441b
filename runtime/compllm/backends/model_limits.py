"""How many requests an engine batches, read from its model's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EMBEDDED = 32  # ExecutorOptions.max_batch_size, which a client without OpenVINO cannot import


def batch_size_of(config: Any) -> int | None:
    """From the ModelConfig (a protobuf) of a core model; None where it has no such parameter."""
    parameters = {key: each.string_value for key, each in config.parameters.items()}
    if "executor_options" in parameters:  # the embedded engine's template has it
        return _whole(_json(parameters["executor_options"] or "{}").get("max_batch_size", EMBEDDED))
    built = _json(_read(Path(parameters.get("gpt_model_path", "")) / "config.json"))
    if isinstance(built.get("build_config"), dict):  # an engine of TensorRT-LLM, on this machine
        return _whole(built["build_config"].get("max_batch_size"))
    # TensorRT-LLM's is what one Triton request may hold, and what repositories set to the engine's;
    # 1 is what other backends have to say there.
    return config.max_batch_size if config.max_batch_size > 1 else None


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
