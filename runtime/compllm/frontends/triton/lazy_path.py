"""The path of the `comp_llm` model, made when its engine can be reached.

The Triton that loads this model serves the engine too, and answers no client before all its models
are loaded. A model that waited for the engine while it loads would wait for itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress

from compllm.errors import BackendUnavailable, CompllmError
from compllm.pipeline import CompLLM

Connect = Callable[[], AbstractAsyncContextManager[CompLLM]]

_CLOSED = "the connection to the engine is closed"


class LazyPath:
    """Connects once for all queries that wait; after a failure, the next query tries again."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._closing = AsyncExitStack()
        self._attempt: asyncio.Task[CompLLM] | None = None
        self._is_closed = False

    @property
    def now(self) -> CompLLM | None:
        """The path, if it is connected."""
        attempt = self._attempt
        if attempt is None or not attempt.done() or attempt.cancelled() or attempt.exception():
            return None
        return attempt.result()

    async def connected(self) -> CompLLM:
        """Wait for the path. Raises what connecting does: BackendUnavailable, ConfigError."""
        if self._is_closed:
            raise BackendUnavailable(_CLOSED)
        if (llm := self.now) is not None:
            return llm
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.ensure_future(
                self._closing.enter_async_context(self._connect())
            )
        attempt = self._attempt
        try:
            # Shielded: one caller's deadline must not end the attempt of all.
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if attempt.cancelled():  # by `aclose`: the caller itself is not
                raise BackendUnavailable(_CLOSED) from None
            raise

    async def aclose(self) -> None:
        self._is_closed = True
        if self._attempt is not None:
            self._attempt.cancel()  # has no effect on one that is done
            with suppress(asyncio.CancelledError, CompllmError):
                await self._attempt
        await self._closing.aclose()
