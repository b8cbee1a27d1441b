"""A Backend that never generates the same text twice: greedy answers, kept on disk.

Contestants share most of their requests (the same plans, the same nodes), and a killed run has done
many of them. That is sound because the engine's sums do not depend on what else is in a batch, so
that a greedy request has one answer. Times of a kept answer mean nothing: latency is measured
without this.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import AsyncGenerator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from compllm.backend import Backend, Chunk, GenerateRequest, open_chunks
from compllm.errors import ConfigError
from compllm.types import Usage

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
  key TEXT PRIMARY KEY, text TEXT, finish_reason TEXT, num_input INTEGER, num_output INTEGER
) WITHOUT ROWID
"""


class AnswerCache:
    """Answers by request, in one SQLite file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Autocommit: a run that is killed keeps every answer.
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = OFF")  # a lost answer is made again
            self._db.execute(_SCHEMA)
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"{path} is no cache of answers ({error}): remove it") from error

    def get(self, key: str) -> Chunk | None:
        query = "SELECT text, finish_reason, num_input, num_output FROM answers WHERE key = ?"
        with closing(self._db.execute(query, (key,))) as cursor:
            row = cursor.fetchone()
        if row is None:
            return None
        text, reason, num_input, num_output = row
        return Chunk(text, num_output, reason, Usage(num_input, num_output))

    def put(self, key: str, text: str, last: Chunk) -> None:
        usage = last.usage or Usage()
        row = (key, text, last.finish_reason, usage.num_input_tokens, usage.num_output_tokens)
        self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?)", row)

    def close(self) -> None:
        self._db.close()


class CachedBackend:
    """Answers from the cache what it knows, asks the backend for the rest.

    identity: of the engine; answers of another one are not taken.
    """

    def __init__(self, backend: Backend, cache: AnswerCache, identity: str) -> None:
        self._backend = backend
        self._cache = cache
        self._identity = identity
        self.num_kept = self.num_made = 0

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[Chunk, None]:
        """See `Backend.generate`. A kept answer comes in one chunk, streamed or not."""
        if request.sampling.temperature > 0:
            raise ConfigError("a drawn answer cannot be kept: evaluate with temperature 0")
        key = _key(request, self._identity)
        kept = self._cache.get(key)
        if kept is not None:
            self.num_kept += 1
            yield kept
            return
        pieces: list[str] = []
        async with open_chunks(self._backend, request) as chunks:
            async for chunk in chunks:
                pieces.append(chunk.text)
                if chunk.finish_reason in ("stop", "length"):
                    self._cache.put(key, "".join(pieces), chunk)
                    self.num_made += 1
                yield chunk

    async def aclose(self) -> None:
        await self._backend.aclose()


def _key(request: GenerateRequest, identity: str) -> str:
    parts = (
        identity,
        request.model,
        request.adapter_id,
        [(segment.text, segment.is_template) for segment in request.prompt],
        asdict(request.sampling),
        (request.guide.type, request.guide.text) if request.guide else None,
    )
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
