"""What a query used, summed over its requests."""

from __future__ import annotations

from compllm.backend import GenerateRequest, Segment, collect
from compllm.frontends.triton.comp_llm_usage import MeteredBackend, QueryUsage
from compllm.testing import Reply, ScriptedBackend
from compllm.types import Usage


def _request(id: str) -> GenerateRequest:
    return GenerateRequest(id, (Segment("a b c"),), is_streamed=True)


async def test_requests_of_the_watched_query_are_summed() -> None:
    backend = MeteredBackend(ScriptedBackend(Reply(("x ", "y"), usage=Usage(3, 2))))
    with backend.watch("q") as usage:
        for each in ("q-plan", "q-1-0", "other-plan", "q-answer"):
            await collect(backend, _request(each))
    assert usage == QueryUsage(num_requests=3, num_input_tokens=9, num_output_tokens=6)


async def test_tokens_of_a_request_that_was_left_count() -> None:
    scripted = ScriptedBackend(Reply(("x ", "y")))
    backend = MeteredBackend(scripted)
    with backend.watch("q") as usage:
        chunks = backend.generate(_request("q-plan"))
        await anext(chunks)
        await chunks.aclose()
    assert (usage.num_requests, usage.num_output_tokens) == (1, 1)
    assert scripted.requests[0].outcome == "cancelled"


async def test_closing_closes_the_engines_connection() -> None:
    scripted = ScriptedBackend()
    await MeteredBackend(scripted).aclose()
    assert scripted.is_closed
