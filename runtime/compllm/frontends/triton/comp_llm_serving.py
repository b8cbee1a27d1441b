"""The `comp_llm` model without Triton: hand it tensors and a sender, it runs the path.

Four threads meet here. Triton's calls `start` and must not be held up. The path lives on an event
loop of its own. Responses are sent on a third thread, in order, as the loop must not wait for the
0.1 ms that each takes. The watching one, of `senders.py`, looks for clients that are gone and
publishes the metrics.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import threading
import time
import traceback
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

from compllm.assembly import RuntimeStats
from compllm.backend import Chunk, GenerateRequest
from compllm.backends.select import connect_as_set, endpoint_keys
from compllm.catalogue import load_catalogue
from compllm.config import Config, load_config
from compllm.errors import (
    CANCELLED,
    INTERNAL,
    INVALID,
    CompllmError,
    DeadlineExceeded,
    QueryError,
    Situation,
    situation_of,
)
from compllm.frontends.triton.comp_llm_tensors import (
    QueryRequest,
    QueryResponse,
    Tensors,
    outputs,
    parse,
    respond,
)
from compllm.frontends.triton.lazy_path import LazyPath
from compllm.frontends.triton.senders import LiveRequest, Sender, Senders, WatchPeriods
from compllm.paths import encoder_dir
from compllm.pipeline import CompLLM
from compllm.routing.embed import SentenceEncoder
from compllm.types import Query

T = TypeVar("T")

_PLAIN_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
MAX_WAIT_S = 1.0  # of a query for its turn, where the settings name no number
_PERIODS = WatchPeriods(check_s=0.02, publish_s=0.25, check_all_s=0.2)


@dataclass(frozen=True, slots=True)
class Runtime:
    """The settings, and the path once its engine can be reached."""

    config: Config
    path: LazyPath


Load = Callable[[], Awaitable[Runtime]]
# Live queries, and the counters of the path; None before it is connected.
OnLoads = Callable[[int, RuntimeStats | None], None]


@dataclass(frozen=True, slots=True)
class QueryEnd:
    """How a request ended, for the server's log. Nothing of the question is in it."""

    id: str  # the client's id of the request, where it sent one; else the query's
    status: str  # the reason of its end, or the name of its situation
    seconds: float
    num_nodes: int | None  # of its plan; None where it failed

    def __str__(self) -> str:
        nodes = "-" if self.num_nodes is None else self.num_nodes
        # A client's id may hold anything, line ends too.
        name = self.id if _PLAIN_ID.fullmatch(self.id) else json.dumps(self.id)
        return f"query {name} {self.status} {self.seconds * 1000:.0f} ms nodes {nodes}"


OnEnd = Callable[[QueryEnd], None]


async def load(server_url: str = "", config_file: str = "") -> Runtime:
    """Everything but the engine, to which the path connects later. An empty argument leaves the
    setting to the environment. Raises ConfigError, RouteError."""
    config = load_config(
        Path(config_file) if config_file else None, {"server.url": server_url or None}
    )
    limits = replace(config.limits, max_wait_s=config.limits.max_wait_s or MAX_WAIT_S)
    config = replace(config, limits=limits)
    catalogue = load_catalogue(Path(config.catalogue) if config.catalogue else None)
    endpoint_keys(catalogue)  # one that is not set is an error of the loading, too
    url = config.server.url or "127.0.0.1:8001"
    encoder = await SentenceEncoder.load(encoder_dir())
    async with CompLLM(_NoEngine(), encoder, catalogue, config):
        pass  # settings that do not fit are an error of the loading, not of the first query

    @asynccontextmanager
    async def connect() -> AsyncIterator[CompLLM]:
        backend = await connect_as_set(url, config.server, catalogue)
        async with CompLLM(backend, encoder, catalogue, config) as llm:
            yield llm

    return Runtime(config, LazyPath(connect))


class _NoEngine:
    """Takes the engine's part while the settings are checked. No request reaches it."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[Chunk]:
        raise AssertionError("no engine is connected")

    async def aclose(self) -> None:
        """There is nothing to close."""


class QueryModel:
    """Serves until it is closed. Raises, when it is made, what `load` raises.

    on_loads: called with the load, on a thread of its own, while a query is live and once after.
    on_end: called with the end of each request.
    """

    def __init__(
        self,
        load: Load = load,
        on_loads: OnLoads = lambda _, __: None,
        on_end: OnEnd = lambda _: None,
    ) -> None:
        self._on_end = on_end
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="compllm-loop")
        self._thread.start()
        try:
            self._requests = self._wait_for(RequestLoop.open(load, on_loads))
        except BaseException:
            self._end_loop()
            raise

    def start(
        self,
        tensors: Tensors,
        parameters: Mapping[str, object],
        sender: Sender,
        request_id: str = "",
    ) -> None:
        """Begin a request. Every outcome reaches the sender."""
        # A client's own id may be anything, and the id of another client's request too.
        query_id = uuid4().hex
        live = _Live(sender, id=request_id or query_id, on_end=self._on_end)
        try:
            request = parse(tensors, parameters, self._requests.config.limits, query_id)
        except QueryError as error:
            live.refuse(str(error), INVALID)
            return
        self._loop.call_soon_threadsafe(self._requests.begin, live, request)

    def close(self) -> None:
        """Cancel what runs, and answer every request that still waits."""
        self._wait_for(self._requests.aclose())
        self._end_loop()

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end_loop(self) -> None:
        self._wait_for(self._loop.shutdown_asyncgens())
        self._wait_for(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass(slots=True, eq=False)
class _Live(LiveRequest):
    id: str = field(kw_only=True)
    on_end: OnEnd = field(kw_only=True)
    start_s: float = field(default_factory=time.monotonic)
    task: asyncio.Task[None] | None = None  # once it has begun

    def respond(self, response: QueryResponse) -> None:
        is_sent = self.send(outputs(response), is_final=response.is_final)
        if is_sent and response.finish_reason is not None:
            self._end(response.finish_reason, len((response.stats or {}).get("nodes", ())))

    def refuse(self, message: str, situation: Situation) -> None:
        # Triton has no code for a missed deadline, and its HTTP front end answers 400 to every
        # error of a model: the text names the situation.
        is_named = situation.name != INVALID.name
        if self.fail(f"{situation.name}: {message}" if is_named else message, situation):
            self._end(situation.name)

    def _end(self, status: str, num_nodes: int | None = None) -> None:
        self.on_end(QueryEnd(self.id, status, time.monotonic() - self.start_s, num_nodes))


class RequestLoop:
    """What runs on the event loop: a task for each live request, and one that connects early."""

    def __init__(self, runtime: Runtime, on_loads: OnLoads) -> None:
        self.config = runtime.config
        self._path = runtime.path
        self._on_loads = on_loads
        self._loop = asyncio.get_running_loop()
        # One thread: the responses of a request go out in order.
        self._outbox = ThreadPoolExecutor(1, thread_name_prefix="compllm-outbox")
        self._senders: Senders[_Live] = Senders(_PERIODS, self._client_gone, self._publish)
        self._warm_up = asyncio.create_task(self._connect_early(), name="compllm-warm-up")

    @classmethod
    async def open(cls, load: Load, on_loads: OnLoads) -> RequestLoop:
        return cls(await load(), on_loads)

    def begin(self, live: _Live, request: QueryRequest) -> None:
        live.task = asyncio.create_task(self._serve(live, request))
        # A callback, as a task that is cancelled before its first step runs nothing of its own.
        live.task.add_done_callback(partial(self._end, live))
        self._senders.add(live)

    async def aclose(self) -> None:
        # On another thread, as the watching one may wait for this loop.
        await asyncio.to_thread(self._senders.close)
        tasks = [self._warm_up, *(live.task for live in self._senders.live() if live.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._path.aclose()
        await asyncio.to_thread(self._outbox.shutdown)

    async def _connect_early(self) -> None:
        """Connect before the first question. A failure is reported to the questions that follow."""
        with suppress(CompllmError):
            await self._path.connected()
            self._senders.refresh()

    # One request

    async def _serve(self, live: _Live, request: QueryRequest) -> None:
        try:
            async with aclosing(self._answer(request)) as responses:
                async for response in responses:
                    await self._on_outbox(partial(live.respond, response))
        except CompllmError as error:
            await self._on_outbox(partial(live.refuse, str(error), situation_of(error)))
        except Exception as error:  # our fault, but the client must not wait for ever
            print(traceback.format_exc(), file=sys.stderr)
            message = f"the query failed: {error!r}"
            await self._on_outbox(partial(live.refuse, message, INTERNAL))

    def _end(self, live: _Live, task: asyncio.Task[None]) -> None:
        self._senders.remove(live)
        if task.cancelled():
            self._outbox.submit(live.refuse, "the request was cancelled", CANCELLED)

    async def _answer(self, request: QueryRequest) -> AsyncGenerator[QueryResponse, None]:
        llm, query = await self._until_connected(request.query)
        async with (
            aclosing(llm.stream(query)) as events,
            aclosing(respond(events, request)) as responses,
        ):
            async for response in responses:
                yield response

    async def _until_connected(self, query: Query) -> tuple[CompLLM, Query]:
        """The path, and the query with the time that is then left of its deadline."""
        if (llm := self._path.now) is not None:
            return llm, query
        deadline_s = query.deadline_s or self.config.timeouts.query_s
        end_s = self._loop.time() + deadline_s
        try:
            async with asyncio.timeout_at(end_s):
                llm = await self._path.connected()
        except TimeoutError:
            message = f"the deadline of {deadline_s:g} s is over, and the engine is not ready yet"
            raise DeadlineExceeded(message, query_id=query.id) from None
        return llm, replace(query, deadline_s=max(end_s - self._loop.time(), 0.001))

    async def _on_outbox(self, call: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._outbox, call)

    # On the watching thread

    def _client_gone(self, live: _Live) -> None:
        assert live.task is not None
        self._loop.call_soon_threadsafe(live.task.cancel)

    def _publish(self, num_live: int) -> None:
        stats = asyncio.run_coroutine_threadsafe(self._stats(), self._loop).result()
        self._on_loads(num_live, stats)

    async def _stats(self) -> RuntimeStats | None:
        llm = self._path.now
        return None if llm is None else llm.stats()
