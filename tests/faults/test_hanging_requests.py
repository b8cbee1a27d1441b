"""12. A request that waits for ever at the head of the queue: all others waited behind it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc.aio as triton_aio
from comp_llm_client import stream
from core_client import Refused, infer, scalars
from tritonclient.utils import InferenceServerException

from compllm.server import triton_server
from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton

END = 2
SOON_S = 10.0


def test_the_longest_request_of_an_odd_cache_ends(
    engine_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """33 tokens promised a token more than the one block of 32 holds."""
    monkeypatch.setenv("COMPLLM_HOME", str(tmp_path))
    options = {"kv_cache_tokens": 33}
    with triton_server.running(engine_dir, options=options, is_shared=False) as info:
        ids = {"input_ids": np.full((1, 28), 5, np.int32), **scalars(np.int32, input_lengths=28)}
        assert len(infer(info, ids, max_tokens=4)) == 4
        with pytest.raises(Refused, match="max_seq_len"):
            infer(info, ids, max_tokens=5)
        assert len(infer(info)) == 8


def test_a_guided_text_ends_at_an_end_token_given_as_a_stop_word(server: ServerInfo) -> None:
    tensors = {
        "guided_decoding_guide_type": "regex",
        "guided_decoding_guide": "[a-z]{2,6}",
        "stop_words_list": np.array([[[END], [1]]], np.int32),
        **scalars(np.int32, min_tokens=2),
    }
    ids = infer(server, tensors, max_tokens=40)
    assert len(ids) < 40
    assert END not in ids[:-1]


@pytest.mark.parametrize("text", ["\u6c34" * 8000, "\u6c34 " * 2000, "<|im_end|>" * 700])
async def test_a_question_of_too_many_tokens_ends_soon(
    server: ServerInfo, slowness: float, text: str
) -> None:
    """Within the limit of characters, and beyond what the engine reads."""
    before, start_s = infer(server), time.monotonic()
    async with triton_aio.InferenceServerClient(server.grpc_url) as client:
        with pytest.raises(
            InferenceServerException, match=r"tokens; the limit is|characters, at most"
        ):
            await stream(client, text=text)
    assert time.monotonic() - start_s < SOON_S * slowness
    assert infer(server) == before
