"""16. Twice as many questions as can be answered: nothing was refused, and nothing was answered."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest
import tritonclient.grpc.aio as triton_aio
from comp_llm_client import QUESTION, stream
from core_client import infer
from tritonclient.utils import InferenceServerException

from compllm.server.triton_state import ServerInfo

pytestmark = pytest.mark.triton

NUM_QUESTIONS = 200
DEADLINE_S = 3.0
LATE_S = 1.5  # of an ending after its deadline: client and server share two cores
RECOVERY_S = 3.0


async def test_a_burst_is_answered_or_refused_in_time_and_the_next_is_answered(
    server: ServerInfo, slowness: float
) -> None:
    before, deadline_s = infer(server), DEADLINE_S * slowness
    async with triton_aio.InferenceServerClient(server.grpc_url) as client:

        async def ask(number: int) -> tuple[str, float]:
            start_s = time.monotonic()
            try:
                text = f"{QUESTION} ({number})"
                answered = await stream(client, text=text, deadline_ms=int(1000 * deadline_s))
                ending = "partial" if answered[-1]["finish_reason"] == "error" else "whole"
            except InferenceServerException as error:
                said = error.message()
                assert "overloaded: " in said or "DEADLINE_EXCEEDED: " in said, said
                ending = "overloaded" if "overloaded: " in said else "late"
            return ending, time.monotonic() - start_s

        ended = await asyncio.gather(*(ask(number) for number in range(NUM_QUESTIONS)))
        start_s = time.monotonic()
        assert (await ask(NUM_QUESTIONS))[0] == "whole"
        assert time.monotonic() - start_s < RECOVERY_S * slowness
    counts = Counter(ending for ending, _ in ended)
    assert counts["whole"] > 0
    assert counts["overloaded"] > counts["late"] + counts["partial"]
    assert max(seconds for _, seconds in ended) < deadline_s + LATE_S * slowness
    assert infer(server) == before
