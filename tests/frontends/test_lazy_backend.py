"""Connecting when it is first needed, once for all."""

from __future__ import annotations

import asyncio

import pytest

from compllm.backend import Backend, GenerateRequest, Segment, collect, max_batch_size
from compllm.errors import BackendUnavailable
from compllm.frontends.triton.lazy_backend import LateBackend
from compllm.testing import Reply, ScriptedBackend

REQUEST = GenerateRequest("q-plan", (Segment("why?"),))


class Server:
    """Counts who connects; refuses while it is away."""

    def __init__(self, *, is_away: bool = False) -> None:
        self.scripted = ScriptedBackend(Reply("because"))
        self.num_connects = 0
        self.is_away = is_away
        self.gate = asyncio.Event()
        self.gate.set()

    async def connect(self) -> Backend:
        self.num_connects += 1
        await self.gate.wait()
        if self.is_away:
            raise BackendUnavailable("nobody is there")
        return self.scripted


async def test_nothing_is_connected_before_it_is_needed() -> None:
    server = Server()
    backend = LateBackend(server.connect)
    assert not backend.is_ready
    assert server.num_connects == 0
    await backend.aclose()


async def test_all_who_wait_share_one_connection() -> None:
    server = Server()
    backend = LateBackend(server.connect)
    answers = await asyncio.gather(*(collect(backend, REQUEST) for _ in range(3)))
    assert [text for text, _ in answers] == ["because"] * 3
    assert server.num_connects == 1
    assert backend.is_ready


async def test_failure_is_told_and_the_next_one_tries_again() -> None:
    server = Server(is_away=True)
    backend = LateBackend(server.connect)
    with pytest.raises(BackendUnavailable, match="nobody is there"):
        await backend.ready()
    server.is_away = False
    assert await backend.ready() is server.scripted
    assert server.num_connects == 2


async def test_one_callers_end_leaves_the_others_their_connection() -> None:
    server = Server()
    server.gate.clear()
    backend = LateBackend(server.connect)
    hasty, patient = (asyncio.create_task(backend.ready()) for _ in range(2))
    await asyncio.sleep(0)
    hasty.cancel()
    server.gate.set()
    assert await patient is server.scripted


async def test_closing_ends_an_attempt_and_a_connection() -> None:
    server = Server()
    server.gate.clear()
    backend = LateBackend(server.connect)
    waiting = asyncio.create_task(backend.ready())
    await asyncio.sleep(0)
    await backend.aclose()
    with pytest.raises(BackendUnavailable, match="closed"):
        await waiting
    with pytest.raises(BackendUnavailable, match="closed"):
        await backend.ready()

    connected = LateBackend(Server().connect)
    scripted = await connected.ready()
    await connected.aclose()
    assert isinstance(scripted, ScriptedBackend)
    assert scripted.is_closed


async def test_limits_of_the_engine_are_passed_on() -> None:
    """So that the queue in front of the engine fits it."""

    class Telling(ScriptedBackend):
        async def max_batch_size(self, model: str) -> int | None:
            return 128 if model == "tensorrt_llm" else None

    async def connect() -> Backend:
        return Telling()

    backend = LateBackend(connect)
    assert await max_batch_size(backend, "tensorrt_llm") == 128
    assert await max_batch_size(backend, "other") is None
