"""Sentence embedding, for the router: list[str] -> float32 [n, dim], unit rows, off the event loop.

The real encoder is any sentence-transformers directory. One of all-MiniLM-L6-v2's kind runs in
numpy (`minilm.py`), others by the library; torch is imported when such a one is loaded, never
before. `testing.HashingEncoder` is the one without a model.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from compllm import minilm
from compllm.errors import ConfigError

Array = npt.NDArray[np.float32]

# What decides the vectors; read-me files and other formats of the same weights do not.
_HASHED = ("modules.json", "config.json", "1_Pooling/config.json", "tokenizer.json", "vocab.txt")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


class Encoder(Protocol):
    """Texts to unit vectors. `id` names the vectors' space: a threshold belongs to one."""

    @property
    def id(self) -> str: ...

    @property
    def dim(self) -> int: ...

    async def encode(self, texts: Sequence[str]) -> Array: ...


class SentenceEncoder:
    """An encoder on the CPU, with the last texts' vectors kept."""

    def __init__(self, model: Any, encoder_id: str, cache_size: int = 4096) -> None:
        self._model = model
        self._lock = asyncio.Lock()  # one forward at a time: two only share the cores
        self._cache: OrderedDict[str, Array] = OrderedDict()
        self._cache_size = cache_size
        self.id = encoder_id
        self.dim = int(model.get_embedding_dimension())

    @classmethod
    async def load(cls, path: Path) -> SentenceEncoder:
        """Load from a directory. Raises ConfigError where there is none or it cannot be read."""
        return await asyncio.to_thread(cls._load, path)

    @classmethod
    def _load(cls, path: Path) -> SentenceEncoder:
        if not (path / "modules.json").is_file():
            raise ConfigError(
                f"no sentence encoder in {path}: fetch it with 'python -m build_scripts.fetch_base'"
            )
        try:
            model = minilm.MiniLM(path) if minilm.fits(path) else _sentence_transformer(path)
            model.encode(["warm up"])
        except Exception as error:
            raise ConfigError(f"cannot load the sentence encoder in {path}: {error}") from error
        return cls(model, encoder_id(path))

    async def encode(self, texts: Sequence[str]) -> Array:
        """float32 [len(texts), dim], unit rows, in the order of the texts."""
        missing = [text for text in dict.fromkeys(texts) if text not in self._cache]
        fresh: dict[str, Array] = {}
        if missing:
            async with self._lock:
                rows = await asyncio.to_thread(self._encode, missing)
            fresh = dict(zip(missing, rows, strict=True))
        found = [fresh[text] if text in fresh else self._cache[text] for text in texts]
        for text, row in zip(texts, found, strict=True):
            self._cache[text] = row
            self._cache.move_to_end(text)
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return np.stack(found) if found else np.zeros((0, self.dim), np.float32)

    def _encode(self, texts: list[str]) -> Array:
        rows = self._model.encode(
            texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False
        )
        return np.asarray(rows, np.float32)


def _sentence_transformer(path: Path) -> Any:
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    # A progress bar and a report of unused buffers on stderr: nothing a user can act on.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return SentenceTransformer(str(path), device="cpu", local_files_only=True)


def encoder_id(path: Path) -> str:
    """A hash of the files that decide the vectors, as `sha256:` and 16 hex digits.

    Raises ConfigError when the directory has no weights.
    """
    weights = [name for name in _WEIGHTS if (path / name).is_file()][:1]
    if not weights:
        raise ConfigError(f"no {' or '.join(_WEIGHTS)} in {path}: the encoder is incomplete")
    digest = hashlib.sha256()
    for name in (*_HASHED, *weights):
        if (path / name).is_file():
            digest.update(name.encode())
            with (path / name).open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"
