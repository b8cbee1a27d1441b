"""A checkpoint's tokenizer: usable, of the model's size, with the chat template's tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import rewrite_json

from compllm.errors import ArtefactError, ConfigError
from compllm.formats.tokenizer_files import check_template, check_tokenizer, end_ids
from compllm.prompts import TEMPLATES

VOCAB = 49152
IM_START, IM_END = 1, 2


@pytest.fixture
def copy(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))


def test_the_tokenizer_of_the_base_is_usable(copy: Path) -> None:
    check_tokenizer(copy, VOCAB)


def test_ids_beyond_the_model_are_refused(copy: Path) -> None:
    with pytest.raises(ArtefactError, match=r"with id 49151, config.json's vocab_size is 49151"):
        check_tokenizer(copy, VOCAB - 1)


@pytest.mark.parametrize("text", ["{}", '{"model": {"type": "BPE"}}', '{"error": "not found"}'])
def test_json_that_is_no_tokenizer_is_refused(copy: Path, text: str) -> None:
    (copy / "tokenizer.json").write_text(text)
    with pytest.raises(ArtefactError, match=r"tokenizer\.json is no tokenizer"):
        check_tokenizer(copy, VOCAB)


def test_end_tokens_of_every_file_count(copy: Path) -> None:
    rewrite_json(copy / "config.json", {"eos_token_id": 0})
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 0]}))
    assert end_ids(copy, VOCAB) == [IM_END, 7, 0]
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": "seven"}))
    with pytest.raises(ArtefactError, match=r"generation_config\.json: eos_token_id is 'seven'"):
        check_tokenizer(copy, VOCAB)


def test_template_whose_tokens_the_tokenizer_lacks_is_refused(copy: Path) -> None:
    check_template(copy, TEMPLATES["chatml"])
    with pytest.raises(ConfigError, match=r'begin_of_text.*is no token.*set template = "chatml"'):
        check_template(copy, TEMPLATES["llama3"])


def test_template_that_is_not_the_checkpoints_own_is_refused(copy: Path) -> None:
    own = "{% for m in messages %}[INST] {{ m.content }} [/INST]{% endfor %}"
    rewrite_json(copy / "tokenizer_config.json", {"chat_template": own})
    with pytest.raises(ConfigError, match=r"the chat_template of .* does not: known templates"):
        check_template(copy, TEMPLATES["chatml"])


def test_template_in_a_file_of_its_own_and_a_named_one_are_read(copy: Path) -> None:
    own = "{{ '<|im_start|>' + m.role }}{{ '<|im_end|>' }}"
    tool = {"name": "tool_use", "template": "[INST]"}
    named = [tool, {"name": "default", "template": own}]
    rewrite_json(copy / "tokenizer_config.json", {"chat_template": named})
    check_template(copy, TEMPLATES["chatml"])
    (copy / "chat_template.jinja").write_text("[INST]")
    with pytest.raises(ConfigError, match="does not"):
        check_template(copy, TEMPLATES["chatml"])


def test_checkpoint_without_a_template_takes_any_whose_tokens_it_has(copy: Path) -> None:
    rewrite_json(copy / "tokenizer_config.json", {"chat_template": None})
    check_template(copy, TEMPLATES["chatml"])
