"""What an engine batches and how long a sequence it holds, read from its model's configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

# Of ExecutorOptions, which a client without OpenVINO cannot import.
EMBEDDED = 32  # max_batch_size
CACHE_TOKENS = 32 * 1024  # kv_cache_tokens
BLOCK = 32  # tokens; the embedded engine's cache is made of whole blocks


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


def seq_len_of(config: Any) -> int | None:
    """Tokens of a prompt and its response together, from the ModelConfig (a protobuf) of a core
    model; None where the engine's files are not on this machine."""
    parameters = {key: each.string_value for key, each in config.parameters.items()}
    engine = Path(parameters.get("gpt_model_path", ""))
    if "executor_options" not in parameters:
        built = _json(_read(engine / "config.json")).get("build_config")
        return _whole(built.get("max_seq_len")) if isinstance(built, dict) else None
    limits = _json(_read(engine / "manifest.json")).get("limits")
    length = _whole(limits.get("max_seq_len")) if isinstance(limits, dict) else None
    cache = _json(parameters["executor_options"] or "{}").get("kv_cache_tokens")
    named = parameters.get("max_tokens_in_paged_kv_cache", "")
    cache = _whole(cache) or (int(named) if named.isdecimal() else CACHE_TOKENS)
    return None if length is None else min(length, max(1, cache // BLOCK) * BLOCK)


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
