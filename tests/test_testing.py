import asyncio

import pytest

from compllm.backend import GenerateRequest, Guide, Segment, collect, open_chunks
from compllm.errors import BackendError, BackendUnavailable
from compllm.testing import Reply, ScriptedBackend


def request(text: str, **more: object) -> GenerateRequest:
    return GenerateRequest("r", (Segment(text),), **more)  # type: ignore[arg-type]


async def test_the_first_reply_that_fits_answers() -> None:
    backend = ScriptedBackend(
        Reply("guided", is_guided=True), Reply("chem", adapter_id=7), Reply("iron", contains="iron")
    )
    assert (await collect(backend, request("x", guide=Guide("regex", "a"))))[0] == "guided"
    assert (await collect(backend, request("iron", adapter_id=7)))[0] == "chem"
    assert (await collect(backend, request("iron")))[0] == "iron"


async def test_a_request_without_a_reply_fails_the_test() -> None:
    with pytest.raises(AssertionError, match="no scripted reply fits: 'x'"):
        await collect(ScriptedBackend(), request("x"))


async def test_a_reply_may_be_used_up() -> None:
    backend = ScriptedBackend(Reply(error=BackendUnavailable("away"), times=1), Reply("x"))
    with pytest.raises(BackendUnavailable):
        await collect(backend, request("q"))
    assert (await collect(backend, request("q")))[0] == "x"
    assert [recorded.outcome for recorded in backend.requests] == ["failed", "done"]


async def test_streamed_text_comes_piece_by_piece_else_whole() -> None:
    backend = ScriptedBackend(Reply(("a ", "b")))
    streamed = [chunk.text async for chunk in backend.generate(request("q", is_streamed=True))]
    assert streamed == ["a ", "b", ""]
    whole = [chunk async for chunk in backend.generate(request("q"))]
    assert [(chunk.text, chunk.finish_reason) for chunk in whole] == [("a b", "stop")]


async def test_log_probs_are_dealt_out_to_requests_that_want_them() -> None:
    backend = ScriptedBackend(Reply(("a ", "b c"), log_probs=(-1, -2, -3)))
    wanted = request("q", is_streamed=True, wants_log_probs=True)
    assert [chunk.log_probs async for chunk in backend.generate(wanted)] == [(-1,), (-2, -3), ()]
    assert (await collect(backend, wanted))[1].log_probs == (-1, -2, -3)
    assert (await collect(backend, request("q", wants_log_probs=True)))[1].log_probs == (-1, -2, -3)
    assert (await collect(backend, request("q")))[1].log_probs == ()


async def test_leaving_early_cancels_and_is_recorded() -> None:
    backend = ScriptedBackend(Reply(("a", "b")))
    async with open_chunks(backend, request("q", is_streamed=True)) as chunks:
        await anext(chunks)
        assert backend.num_running == 1
    assert backend.requests[0].outcome == "cancelled"


async def test_a_gate_holds_a_reply_back() -> None:
    gate = asyncio.Event()
    backend = ScriptedBackend(Reply("a", gate=gate))
    task = asyncio.create_task(collect(backend, request("q")))
    recorded = await backend.wait_for("q")
    assert recorded.outcome == "running"
    gate.set()
    await task
    assert recorded.ended_s is not None
    assert recorded.ended_s >= recorded.started_s


async def test_a_response_that_breaks_off_is_an_error() -> None:
    class Broken(ScriptedBackend):
        async def generate(self, request):  # type: ignore[no-untyped-def]
            return
            yield

    with pytest.raises(BackendError, match="broke off"):
        await collect(Broken(), request("q"))
