"""The tokenizer inside the engine: a guide knows every end token that the model's files name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import rewrite_json

from compllm.embedded.request import EngineRequest
from compllm.embedded.texttools import TextTools

VOCAB = 49152
CONFIG_END, TURN_END, LETTER, OTHER = 0, 2, 49, 50


@pytest.fixture
def tools(tiny_checkpoint: Path, tmp_path: Path) -> Iterator[TextTools]:
    """The engine of a chat model whose config.json names the base model's end of text alone."""
    copy = Path(shutil.copytree(tiny_checkpoint, tmp_path / "copy"))
    rewrite_json(copy / "config.json", {"eos_token_id": CONFIG_END})
    rewrite_json(copy / "tokenizer_config.json", {"eos_token": None})
    ends = {"eos_token_id": [TURN_END, CONFIG_END]}
    (copy / "generation_config.json").write_text(json.dumps(ends))
    made = TextTools(copy, VOCAB)
    yield made
    made.close()


def allowed_at_the_end(tools: TextTools, request: EngineRequest) -> set[int]:
    guide = tools.guide(request)
    guide.accept(LETTER)
    row = np.zeros(VOCAB, np.float32)
    guide.mask(row)
    return set(np.flatnonzero(row == 0).tolist())


def test_a_guided_text_may_end_with_each_end_token_that_a_request_stops_at(
    tools: TextTools,
) -> None:
    stops = ((TURN_END,), (OTHER,), (9, 9))
    request = EngineRequest(
        (1,), 9, CONFIG_END, stop_words=stops, guide_type="regex", guide=r"(.|\n){0,1}"
    )
    assert allowed_at_the_end(tools, request) == {CONFIG_END, TURN_END}


def test_without_stop_words_the_end_token_alone_ends(tools: TextTools) -> None:
    request = EngineRequest((1,), 9, TURN_END, guide_type="regex", guide=r"(.|\n){0,1}")
    assert allowed_at_the_end(tools, request) == {TURN_END}
