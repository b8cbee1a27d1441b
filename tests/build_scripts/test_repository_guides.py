"""The tokenizer as guided decoding reads it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import rewrite_json

from compllm.build_scripts.repository.guides import tokenizer_info
from compllm.errors import ConfigError


@pytest.fixture
def tokenizer(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny_checkpoint / name, tmp_path / name)
    return tmp_path


def test_info_is_what_upstreams_script_takes_from_transformers(tokenizer: Path) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer)
    ours = tokenizer_info(tokenizer)
    by_id = sorted(theirs.get_vocab().items(), key=lambda pair: pair[1])
    assert ours["encoded_vocab"] == [token for token, _ in by_id]
    assert ours["stop_token_ids"] == [theirs.eos_token_id]
    own = json.loads(ours["tokenizer_str"])
    assert own["decoder"] == json.loads(theirs.backend_tokenizer.to_str())["decoder"]


def test_missing_or_broken_tokenizer_is_named(tokenizer: Path) -> None:
    (tokenizer / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json cannot be read"):
        tokenizer_info(tokenizer)
    (tokenizer / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer\.json does not exist"):
        tokenizer_info(tokenizer)


def test_end_token_must_be_a_token(tokenizer: Path) -> None:
    rewrite_json(tokenizer / "tokenizer_config.json", {"eos_token": "<nowhere>"})
    with pytest.raises(ConfigError, match="has no token '<nowhere>'"):
        tokenizer_info(tokenizer)
    rewrite_json(tokenizer / "tokenizer_config.json", {"eos_token": None})
    with pytest.raises(ConfigError, match="eos_token is None"):
        tokenizer_info(tokenizer)


def test_end_token_may_be_spelt_out(tokenizer: Path) -> None:
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    before = tokenizer_info(tokenizer)["stop_token_ids"]
    rewrite_json(
        tokenizer / "tokenizer_config.json", {"eos_token": {"content": config["eos_token"]}}
    )
    assert tokenizer_info(tokenizer)["stop_token_ids"] == before


def test_ids_with_a_hole_are_refused(tokenizer: Path) -> None:
    value = json.loads((tokenizer / "tokenizer.json").read_text())
    token = max(value["model"]["vocab"], key=value["model"]["vocab"].get)
    value["model"]["vocab"][token] += 1000
    (tokenizer / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(ConfigError, match="each once"):
        tokenizer_info(tokenizer)
