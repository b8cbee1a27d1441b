"""The `comp_llm` model without Triton: hand it tensors and a sender, it runs the path.

Three threads meet here. Triton's calls `start` and must not be held up. The path lives on an event
loop of its own. All that is said to or asked of Triton's senders goes through one thread, in the
order it was asked for: Triton crashes when a sender is asked anything during or after its final
response, and the loop must not wait for the 0.1 ms that each call takes.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import threading
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from compllm.assembly import RuntimeStats
from compllm.backends.select import connect_as_set
from compllm.catalogue import load_catalogue
from compllm.config import LimitsConfig, load_config
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
    FaceRequest,
    FaceResponse,
    Tensors,
    outputs,
    parse,
    respond,
)
from compllm.frontends.triton.lazy_backend import LateBackend
from compllm.paths import encoder_dir
from compllm.pipeline import CompLLM
from compllm.routing.embed import SentenceEncoder
from compllm.types import Query

T = TypeVar("T")

_PLAIN_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_CHECK_PERIOD_S = 0.02
_LOADS_PERIOD_S = 0.25
_CHECK_ALL_S = 0.2  # within which each live request is asked whether its client is gone


class Sender(Protocol):
    """The way back to one client: Triton's response sender."""

    def send(self, tensors: dict[str, Any], *, is_final: bool) -> None: ...
    def fail(self, message: str, situation: Situation) -> None: ...
    def is_cancelled(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Runtime:
    """The path, and the Backend through which it sees the engine."""

    llm: CompLLM
    engine: LateBackend


Load = Callable[[], Awaitable[Runtime]]
OnLoads = Callable[[int, RuntimeStats], None]  # live queries, counters of the runtime


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
    """Everything but the engine, which is connected to later. An empty argument leaves the setting
    to the environment. Raises ConfigError, RouteError."""
    config = load_config(
        Path(config_file) if config_file else None, {"server.url": server_url or None}
    )
    catalogue = load_catalogue(Path(config.catalogue) if config.catalogue else None)
    url = config.server.url or "127.0.0.1:8001"
    engine = LateBackend(lambda: connect_as_set(url, config.server, catalogue))
    encoder = await SentenceEncoder.load(encoder_dir())
    return Runtime(CompLLM(engine, encoder, catalogue, config), engine)


class FaceModel:
    """Serves until it is closed. Raises, when it is made, what `load` raises.

    on_loads: told of the queues, on a thread of its own, while anything is live and once after.
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
            self._desk = self._wait_for(_Desk.open(load, on_loads))
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
        # A client's own id may be anything, and anybody else's too.
        query_id = uuid4().hex
        live = _Live(sender, request_id or query_id, self._on_end)
        try:
            request = parse(tensors, parameters, self._desk.limits, query_id)
        except QueryError as error:
            live.fail(str(error), INVALID)
            return
        self._loop.call_soon_threadsafe(self._desk.begin, live, request)

    def close(self) -> None:
        """Cancel what runs, and answer everybody who still waits."""
        self._wait_for(self._desk.aclose())
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
class _Live:
    """A request that is not answered to its end. Its methods are for the senders' thread alone,
    once its query has begun."""

    sender: Sender
    id: str
    on_end: OnEnd
    start_s: float = field(default_factory=time.monotonic)
    is_over: bool = False

    def send(self, response: FaceResponse) -> None:
        if self.is_over:
            return
        self.is_over = response.is_final
        self.sender.send(outputs(response), is_final=response.is_final)
        if response.finish_reason is not None:
            self._end(response.finish_reason, len((response.stats or {}).get("nodes", ())))

    def fail(self, message: str, situation: Situation) -> None:
        if self.is_over:
            return
        self.is_over = True
        # Triton has no code for a missed deadline, and its HTTP front end answers 400 to every
        # error of a model: the text names the situation.
        is_named = situation.name != INVALID.name
        self.sender.fail(f"{situation.name}: {message}" if is_named else message, situation)
        self._end(situation.name)

    def _end(self, status: str, num_nodes: int | None = None) -> None:
        self.on_end(QueryEnd(self.id, status, time.monotonic() - self.start_s, num_nodes))

    def is_gone(self) -> bool:
        return not self.is_over and self.sender.is_cancelled()


class _Desk:
    """What runs on the event loop: a task for each live request, one that looks for clients who
    left, one that tells of the queues."""

    def __init__(self, runtime: Runtime, on_loads: OnLoads, closing: AsyncExitStack) -> None:
        self._runtime = runtime
        self._on_loads = on_loads
        self._closing = closing
        self._live: dict[_Live, asyncio.Task[None]] = {}  # who waits longest to be asked is first
        self._has_live = asyncio.Event()
        self._senders = ThreadPoolExecutor(1, thread_name_prefix="compllm-senders")
        self._watcher = asyncio.create_task(self._watch(), name="compllm-watch")
        self._teller = asyncio.create_task(self._tell_loads(), name="compllm-loads")
        self._warm_up = asyncio.create_task(self._connect_early(), name="compllm-warm-up")

    @classmethod
    async def open(cls, load: Load, on_loads: OnLoads) -> _Desk:
        async with AsyncExitStack() as stack:
            runtime = await load()
            await stack.enter_async_context(runtime.llm)
            return cls(runtime, on_loads, stack.pop_all())
        raise AssertionError("unreachable")

    @property
    def limits(self) -> LimitsConfig:
        return self._runtime.llm.config.limits

    def begin(self, live: _Live, request: FaceRequest) -> None:
        task = asyncio.create_task(self._serve(live, request))
        # A callback, as a task that is cancelled before its first step runs nothing of its own.
        task.add_done_callback(partial(self._end, live))
        self._live[live] = task
        self._has_live.set()

    async def aclose(self) -> None:
        tasks = [*self._live.values(), self._watcher, self._teller, self._warm_up]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._closing.aclose()
        await asyncio.to_thread(self._senders.shutdown)

    async def _connect_early(self) -> None:
        """So that the first question does not pay for it. What fails here fails there again."""
        with suppress(CompllmError):
            await self._runtime.engine.ready()

    # One request

    async def _serve(self, live: _Live, request: FaceRequest) -> None:
        try:
            async with aclosing(self._answer(request)) as responses:
                async for response in responses:
                    await self._ask_senders(partial(live.send, response))
        except CompllmError as error:
            await self._ask_senders(partial(live.fail, str(error), situation_of(error)))
        except Exception as error:  # our fault, but whoever asked must not wait for ever
            print(traceback.format_exc(), file=sys.stderr)
            message = f"the query failed: {error!r}"
            await self._ask_senders(partial(live.fail, message, INTERNAL))

    def _end(self, live: _Live, task: asyncio.Task[None]) -> None:
        del self._live[live]
        if task.cancelled():
            self._senders.submit(live.fail, "the request was cancelled", CANCELLED)

    async def _answer(self, request: FaceRequest) -> AsyncGenerator[FaceResponse, None]:
        query = await self._until_ready(request)
        async with (
            aclosing(self._runtime.llm.stream(query)) as events,
            aclosing(respond(events, request)) as responses,
        ):
            async for response in responses:
                yield response

    async def _until_ready(self, request: FaceRequest) -> Query:
        """The query, with the time that is left of its deadline once the engine is there."""
        query, engine = request.query, self._runtime.engine
        if engine.is_ready:
            return query
        loop = asyncio.get_running_loop()
        deadline_s = query.deadline_s or self._runtime.llm.config.timeouts.query_s
        end_s = loop.time() + deadline_s
        try:
            async with asyncio.timeout_at(end_s):
                await engine.ready()
        except TimeoutError:
            message = f"the deadline of {deadline_s:g} s is over, and the engine is not ready yet"
            raise DeadlineExceeded(message, query_id=query.id) from None
        return replace(query, deadline_s=max(end_s - loop.time(), 0.001))

    # Clients who left

    async def _watch(self) -> None:
        """Cancel the requests of clients who left. Each is asked in turn: asking costs 0.1 ms of
        two processes' time."""
        while True:
            if not self._live:
                self._has_live.clear()
                await self._has_live.wait()
            await asyncio.sleep(_CHECK_PERIOD_S)
            count = math.ceil(len(self._live) * _CHECK_PERIOD_S / _CHECK_ALL_S)
            asked = list(self._live)[:count]
            for live in asked:  # to the end of the queue
                self._live[live] = self._live.pop(live)
            if await self._cancel_gone(asked):
                # Mostly a whole stream was closed: its other requests are asked at once.
                await self._cancel_gone(list(self._live))

    async def _cancel_gone(self, asked: Sequence[_Live]) -> bool:
        gone = await self._ask_senders(lambda: [live for live in asked if live.is_gone()])
        for live in gone:
            if (task := self._live.get(live)) is not None:
                task.cancel()
        return bool(gone)

    # Metrics

    async def _tell_loads(self) -> None:
        """Now and then, as each change of a metric is a message to another process."""
        while True:
            num_told = len(self._live)
            await asyncio.to_thread(self._on_loads, num_told, self._runtime.llm.stats())
            if not num_told:  # else the last of them has an end to tell
                await self._has_live.wait()
            await asyncio.sleep(_LOADS_PERIOD_S)

    async def _ask_senders(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._senders, call)
