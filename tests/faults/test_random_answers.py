"""5. Sampling meant other things at other interfaces: a "random" answer was always the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from comp_llm_client import QUESTION, generate
from core_client import infer, scalars

from compllm.backend import GenerateRequest, Segment, collect
from compllm.backends.triton import TritonBackend
from compllm.server.triton_state import ServerInfo
from compllm.types import SamplingParams

pytestmark = pytest.mark.triton

DRAWN: dict[str, Any] = scalars(np.float32, temperature=1.5, runtime_top_p=1.0)


def answer(server: ServerInfo, **more: Any) -> str:
    return str(generate(server, text_input=QUESTION, **more)["text_output"])


def test_without_a_seed_each_answer_is_drawn_anew(server: ServerInfo) -> None:
    assert infer(server, DRAWN) != infer(server, DRAWN)
    assert answer(server, temperature=1.5) != answer(server, temperature=1.5)


def test_top_p_of_0_is_the_likeliest_token_alone(server: ServerInfo) -> None:
    assert infer(server, DRAWN | scalars(np.float32, runtime_top_p=0.0)) == infer(server)
    assert answer(server, temperature=1.5, top_p=0.0) == answer(server)


async def test_a_stop_string_may_spell_a_special_token(server: ServerInfo) -> None:
    """As a string it never matched."""
    backend = await TritonBackend.connect(server.grpc_url)
    try:
        # Drawn from all tokens, a special one comes after some hundred of them.
        drawn = SamplingParams(400, temperature=50.0, top_k=0, seed=3)
        prompt = (Segment("What is iron?"),)
        whole, _ = await collect(backend, GenerateRequest("w", prompt, drawn))
        stop = whole[len(whole) // 2 :][:3]
        cut = SamplingParams(400, temperature=50.0, top_k=0, seed=3, stop=(stop, "<|im_start|>"))
        text, last = await collect(backend, GenerateRequest("c", prompt, cut))
        assert last.finish_reason == "stop"
        assert text == whole.partition(stop)[0].partition("<|im_start|>")[0]
    finally:
        await backend.aclose()
