"""4. A text of characters of several tokens each: nothing of it was streamed before its end."""

from __future__ import annotations

import re

import pytest

from compllm.backend import GenerateRequest, Guide, Segment
from compllm.backends.triton import TritonBackend
from compllm.server.triton_state import ServerInfo
from compllm.types import SamplingParams

pytestmark = pytest.mark.triton

RARE = "[\U0001f980-\U0001f9bf]{40}"  # no token of the tokenizer is one of them


async def test_characters_of_several_tokens_stream_while_they_come(server: ServerInfo) -> None:
    backend = await TritonBackend.connect(server.grpc_url)
    try:
        request = GenerateRequest(
            "r",
            (Segment("What is iron?"),),
            SamplingParams(300),
            guide=Guide("regex", RARE),
            is_streamed=True,
        )
        chunks = [chunk async for chunk in backend.generate(request)]
    finally:
        await backend.aclose()
    assert re.fullmatch(RARE, "".join(chunk.text for chunk in chunks))
    assert sum(bool(chunk.text) for chunk in chunks) > 1  # on a busy machine several come as one
    assert sum(chunk.num_tokens for chunk in chunks) >= 2 * 40
