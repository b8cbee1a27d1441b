"""The tokenizer as TensorRT-LLM's guided decoding reads it: xgrammar_tokenizer_info.json.

The three values that upstream's generate_xgrammar_tokenizer_info.py takes out of a Hugging Face
tokenizer, read from tokenizer.json itself, so that a repository can be made outside the image.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from compllm.errors import ConfigError
from compllm.formats.json_files import read_json

FILE = "xgrammar_tokenizer_info.json"


def tokenizer_info(tokenizer_dir: Path) -> dict[str, Any]:
    """encoded_vocab: a token for each id, in order; tokenizer_str: tokenizer.json, from which
    xgrammar sees how bytes are spelt; stop_token_ids: where a grammar may end.

    Raises ConfigError when the tokenizer is not there or cannot be used.
    """
    from tokenizers import Tokenizer

    path = tokenizer_dir / "tokenizer.json"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: name the directory of the base's tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ConfigError(f"{path} cannot be read: {error}") from error
    by_id = sorted((number, token) for token, number in tokenizer.get_vocab().items())
    if [number for number, _ in by_id] != list(range(len(by_id))):
        raise ConfigError(f"{path}: its {len(by_id)} ids are not 0 to {len(by_id) - 1}, each once")
    end = _end_token(tokenizer_dir)
    end_id = tokenizer.token_to_id(end)
    if end_id is None:
        raise ConfigError(f"{path} has no token {end!r}, which tokenizer_config.json ends with")
    return {
        "encoded_vocab": [token for _, token in by_id],
        "tokenizer_str": tokenizer.to_str(),
        "stop_token_ids": [end_id],
    }


def write_tokenizer_info(tokenizer_dir: Path, to: Path) -> Path:
    """Write the file into the directory `to`."""
    path = to / FILE
    path.write_text(json.dumps(tokenizer_info(tokenizer_dir)), encoding="utf-8")
    return path


def _end_token(tokenizer_dir: Path) -> str:
    token = read_json(tokenizer_dir / "tokenizer_config.json").get("eos_token")
    if isinstance(token, dict):
        token = token.get("content")
    if not isinstance(token, str):
        raise ConfigError(
            f"{tokenizer_dir / 'tokenizer_config.json'}: eos_token is {token!r}: it must be a text"
        )
    return token
