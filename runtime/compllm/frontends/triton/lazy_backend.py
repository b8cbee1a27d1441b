"""A Backend that connects when it is first needed.

The engine of the `comp_llm` model is served by the very Triton that loads that model, and answers
nobody before all models are loaded: to wait for it while loading would be to wait for oneself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress

from compllm.backend import Backend, Chunk, GenerateRequest, max_batch_size, open_chunks
from compllm.errors import BackendUnavailable, CompllmError

Connect = Callable[[], Awaitable[Backend]]

_CLOSED = "the connection to the engine is closed"


class LateBackend:
    """Connects once for all who wait; after a failure, again for the next who asks."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._attempt: asyncio.Task[Backend] | None = None
        self._is_closed = False

    @property
    def is_ready(self) -> bool:
        return self._backend_now() is not None

    async def ready(self) -> Backend:
        """The connected one. Raises what connecting does: BackendUnavailable, ConfigError."""
        if self._is_closed:
            raise BackendUnavailable(_CLOSED)
        if (backend := self._backend_now()) is not None:
            return backend
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.ensure_future(self._connect())
        attempt = self._attempt
        try:
            # Shielded: one caller's deadline must not end the attempt of all.
            return await asyncio.shield(attempt)
        except asyncio.CancelledError:
            if attempt.cancelled():  # by `aclose`: the caller itself is not
                raise BackendUnavailable(_CLOSED) from None
            raise

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        async with open_chunks(await self.ready(), request) as chunks:
            async for chunk in chunks:
                yield chunk

    async def max_batch_size(self, model: str) -> int | None:
        return await max_batch_size(await self.ready(), model)

    async def aclose(self) -> None:
        self._is_closed = True
        if self._attempt is None:
            return
        self._attempt.cancel()  # nothing happens to one that is done
        with suppress(asyncio.CancelledError, CompllmError):
            await (await self._attempt).aclose()

    def _backend_now(self) -> Backend | None:
        attempt = self._attempt
        if attempt is None or not attempt.done() or attempt.cancelled() or attempt.exception():
            return None
        return attempt.result()
