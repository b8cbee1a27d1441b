"""Connecting the path when its engine can be reached, once for all queries that wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from path_parts import CATALOGUE, settings

from compllm.errors import BackendUnavailable
from compllm.frontends.triton.lazy_path import LazyPath
from compllm.pipeline import CompLLM
from compllm.testing import HashingEncoder, ScriptedBackend


class Server:
    """Counts the connections; refuses them while it is away."""

    def __init__(self, *, is_away: bool = False) -> None:
        self.scripted = ScriptedBackend()
        self.num_connects = 0
        self.is_away = is_away
        self.gate = asyncio.Event()
        self.gate.set()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[CompLLM]:
        self.num_connects += 1
        await self.gate.wait()
        if self.is_away:
            raise BackendUnavailable("no server is there")
        async with CompLLM(self.scripted, HashingEncoder(), CATALOGUE, settings()) as llm:
            yield llm


async def test_nothing_is_connected_before_the_first_query() -> None:
    server = Server()
    path = LazyPath(server.connect)
    assert path.now is None
    assert server.num_connects == 0
    await path.aclose()


async def test_all_queries_that_wait_share_one_connection() -> None:
    server = Server()
    path = LazyPath(server.connect)
    found = await asyncio.gather(*(path.connected() for _ in range(3)))
    assert len(set(map(id, found))) == 1
    assert path.now is found[0]
    assert server.num_connects == 1
    await path.aclose()


async def test_failure_is_reported_and_the_next_query_tries_again() -> None:
    server = Server(is_away=True)
    path = LazyPath(server.connect)
    with pytest.raises(BackendUnavailable, match="no server is there"):
        await path.connected()
    assert path.now is None
    server.is_away = False
    assert await path.connected() is path.now
    assert server.num_connects == 2
    await path.aclose()


async def test_end_of_one_query_leaves_the_others_their_connection() -> None:
    server = Server()
    server.gate.clear()
    path = LazyPath(server.connect)
    hasty, patient = (asyncio.create_task(path.connected()) for _ in range(2))
    await asyncio.sleep(0)
    hasty.cancel()
    server.gate.set()
    assert await patient is path.now
    await path.aclose()


async def test_closing_ends_an_attempt() -> None:
    server = Server()
    server.gate.clear()
    path = LazyPath(server.connect)
    waiting = asyncio.create_task(path.connected())
    await asyncio.sleep(0)
    await path.aclose()
    with pytest.raises(BackendUnavailable, match="closed"):
        await waiting
    with pytest.raises(BackendUnavailable, match="closed"):
        await path.connected()


async def test_closing_closes_the_connection() -> None:
    server = Server()
    path = LazyPath(server.connect)
    await path.connected()
    await path.aclose()
    assert server.scripted.is_closed
    with pytest.raises(BackendUnavailable, match="closed"):
        await path.connected()
