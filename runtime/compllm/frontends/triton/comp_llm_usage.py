"""What one query used of the engine, over all its requests: seen by a Backend that others pass
through.

The path tells the nodes' token counts and not those of plan and answer; a Triton client wants to
know.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from compllm.backend import Backend, Chunk, GenerateRequest, max_batch_size, open_chunks


@dataclass(slots=True)
class QueryUsage:
    """Sums over the requests of one query."""

    num_requests: int = 0
    num_input_tokens: int = 0  # of those that ran to their end: the engine tells it there
    num_output_tokens: int = 0

    def add(self, chunk: Chunk) -> None:
        self.num_output_tokens += chunk.num_tokens
        if chunk.usage is not None:
            self.num_input_tokens += chunk.usage.num_input_tokens


class MeteredBackend:
    """Any Backend, with the usage of each query that is watched."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._watched: dict[str, QueryUsage] = {}

    @contextmanager
    def watch(self, query_id: str) -> Iterator[QueryUsage]:
        """Sums of the query with this id, which holds no '-', for the length of the block."""
        usage = self._watched[query_id] = QueryUsage()
        try:
            yield usage
        finally:
            del self._watched[query_id]

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        # The path names requests `QUERY-plan`, `QUERY-NODE-ATTEMPT` and `QUERY-answer`.
        query_id = request.id.partition("-")[0]
        usage = self._watched.get(query_id, QueryUsage())  # of an unwatched query: for nobody
        usage.num_requests += 1
        async with open_chunks(self._backend, request) as chunks:
            async for chunk in chunks:
                usage.add(chunk)
                yield chunk

    async def max_batch_size(self, model: str) -> int | None:
        return await max_batch_size(self._backend, model)

    async def aclose(self) -> None:
        await self._backend.aclose()
