"""Sentence embedding, for the router: list[str] -> float32 [n, dim], unit rows, off the event loop.

The real encoder is any sentence-transformers directory. OpenVINO runs what `convert_encoder.py`
made of it, without torch; where that or OpenVINO is missing, sentence-transformers itself does,
slower to load, with the same vectors. `testing.HashingEncoder` is the one without a model.

A text is encoded without what does not change its meaning (`plain`): the same question with a blank
more or without its question mark has the same vector, and with it the same route. Of a text that
is longer than the encoder reads, the part that asks is encoded (asking.py), not its beginning.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from compllm.errors import ConfigError
from compllm.paths import home_dir
from compllm.routing.asking import asking_part

Array = npt.NDArray[np.float32]

# What decides the vectors; read-me files and other formats of the same weights do not.
_HASHED = ("modules.json", "config.json", "1_Pooling/config.json", "tokenizer.json", "vocab.txt")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")

# The converted encoder: files of `ir_dir`.
IR_MODEL = "openvino_model.xml"
IR_TOKENIZER = "tokenizer.json"  # truncates and pads
IR_RECORD = "converted.json"  # the encoder's id, the form, OpenVINO's version, all files' sizes
# What the conversion writes. Another version of this software may write another form to the same
# place, with other numbers in its vectors: each takes only its own.
IR_FORM = "float32"
IR_INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # an encoder may lack the last
_BATCH = 16
# Two are faster for a question than one; the engine wants the other cores.
_NUM_THREADS = 2
# Tokens of texts that have a model of fixed shape to themselves, padded: a third faster than one of
# any shape. Of our sub-queries 55, 83 and 99 % are so short. One costs 0.3 s at start.
_SHORT = (12, 14, 18)

# Part of an encoder's id: another form of the texts makes other vectors.
_PLAIN_VERSION = "plain1"
_CLOSING = " ?.!:;,"


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
        self.model = model  # the library that computes: OpenVINOEncoder or sentence-transformers
        self._lock = asyncio.Lock()  # one forward at a time: two only share the cores
        # A cancelled caller gives the other lock back while its thread still computes.
        self._computing = threading.Lock()
        self._cache: OrderedDict[str, Array] = OrderedDict()
        self._cache_size = cache_size
        self.id = f"{encoder_id}/{_PLAIN_VERSION}"
        self.dim = int(model.get_embedding_dimension())

    @classmethod
    async def load(cls, path: Path) -> SentenceEncoder:
        """Load from a directory. Raises ConfigError where there is none or it cannot be read."""
        return await asyncio.to_thread(cls._load, path)

    @classmethod
    def _load(cls, path: Path) -> SentenceEncoder:
        if not (path / "modules.json").is_file():
            raise ConfigError(f"no sentence encoder in {path}: `compllm up` fetches it")
        try:
            source = encoder_id(path)
            ir = find_ir(path, source) if importlib.util.find_spec("openvino") else None
            model = OpenVINOEncoder(ir) if ir else sentence_transformer(path)
            model.encode(["warm up"])
        except Exception as error:
            raise ConfigError(f"cannot load the sentence encoder in {path}: {error}") from error
        return cls(model, source)

    async def encode(self, texts: Sequence[str]) -> Array:
        """float32 [len(texts), dim], unit rows, in the order of the texts."""
        if any(map(self._may_be_cut, texts)):
            texts = await asyncio.to_thread(self._asking_parts, texts)
        texts = [plain(text) for text in texts]
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

    def _may_be_cut(self, text: str) -> bool:
        """Without a look at its tokens: each has a character at least, and two mark the ends."""
        room = getattr(self.model, "max_seq_length", None)
        return room is not None and len(text) + 2 > room

    def _asking_parts(self, texts: Sequence[str]) -> list[str]:
        # What all fitted heads have seen is short: their vectors stay as they were.
        return [asking_part(text, self._can_read) for text in texts]

    def _can_read(self, text: str) -> bool:
        model = self.model
        if not self._may_be_cut(text):
            return True
        is_converted = isinstance(model, OpenVINOEncoder)
        num_tokens = (
            model.num_tokens(text)
            if is_converted
            else len(model.tokenizer(text, verbose=False)["input_ids"])
        )
        return bool(num_tokens <= model.max_seq_length)

    def _encode(self, texts: list[str]) -> Array:
        with self._computing:
            rows = self.model.encode(
                texts, batch_size=32, normalize_embeddings=True, show_progress_bar=False
            )
        return np.asarray(rows, np.float32)


class OpenVINOEncoder:
    """A converted encoder, with a SentenceTransformer's interface as far as it is used here."""

    def __init__(self, ir: Path, *, has_matmul_offload: bool = True) -> None:
        """has_matmul_offload: multiply with the engine's kernels where they are faster."""
        import tokenizers

        from compllm.embedded.cores import new_core
        from compllm.embedded.matmul_offload import offload_matmuls

        config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": _NUM_THREADS,
            "INFERENCE_PRECISION_HINT": "f32",
        }
        core = new_core()
        model = core.read_model(ir / IR_MODEL)
        # Kept: the compiled models point to it.
        self._offloaded = offload_matmuls(model, core) if has_matmul_offload else None
        self._inputs = [port.any_name for port in model.inputs]
        self._dim = int(model.output(0).partial_shape[-1].get_length())
        self._request = core.compile_model(model, "CPU", config).create_infer_request()
        self._short_requests = {}
        for length in _SHORT:
            model.reshape({name: [1, length] for name in self._inputs})
            compiled = core.compile_model(model, "CPU", config)
            self._short_requests[length] = compiled.create_infer_request()
        self._tokenizer = tokenizers.Tokenizer.from_file(str(ir / IR_TOKENIZER))
        padding = self._tokenizer.padding or {}
        self.max_seq_length = int(self._tokenizer.truncation["max_length"])
        self._counter = tokenizers.Tokenizer.from_file(str(ir / IR_TOKENIZER))
        self._counter.no_truncation()
        self._counter.no_padding()
        kept = ("direction", "pad_id", "pad_type_id", "pad_token")
        self._padding = {name: padding[name] for name in kept if name in padding}

    @property
    def num_offloaded_matmuls(self) -> int:
        """Products that run on the engine's kernels."""
        return self._offloaded.num_matmuls if self._offloaded else 0

    def get_embedding_dimension(self) -> int:
        return self._dim

    def num_tokens(self, text: str) -> int:
        """Of the whole text, with those that mark its ends; `max_seq_length` of them are read."""
        return len(self._counter.encode(text).ids)

    def encode(self, texts: Sequence[str], **_: object) -> Array:
        """float32 [len(texts), dim], unit rows, in the order of the texts."""
        rows = np.empty((len(texts), self._dim), np.float32)
        by_length = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(by_length), _BATCH):
            batch = by_length[start : start + _BATCH]
            rows[batch] = self._encode([texts[index] for index in batch])
        return rows

    def _encode(self, texts: list[str]) -> Array:
        encodings = self._tokenizer.encode_batch(texts)
        request = self._request
        if len(texts) == 1 and len(encodings[0].ids) <= _SHORT[-1]:
            length = next(each for each in _SHORT if len(encodings[0].ids) <= each)
            encodings[0].pad(length, **self._padding)
            request = self._short_requests[length]
        columns = {
            "input_ids": [encoding.ids for encoding in encodings],
            "attention_mask": [encoding.attention_mask for encoding in encodings],
            "token_type_ids": [encoding.type_ids for encoding in encodings],
        }
        arrays = {name: np.array(columns[name], np.int64) for name in self._inputs}
        rows: Array = request.infer(arrays)[0]
        return rows


def plain(text: str) -> str:
    """The text with every run of white space as one blank, without closing punctuation."""
    text = " ".join(text.split())
    return text.rstrip(_CLOSING) or text


def ir_dir(path: Path) -> Path:
    """Where the OpenVINO form of the encoder in `path` is, once made."""
    return path / "openvino"


def find_ir(path: Path, source: str) -> Path | None:
    """The OpenVINO form of the encoder with this id; None where it is missing, damaged, another
    encoder's or of another form."""
    ir = ir_dir(path)
    try:
        record = json.loads((ir / IR_RECORD).read_text(encoding="utf-8"))
        sizes = record["sizes"].items()
        is_whole = all((ir / name).stat().st_size == size for name, size in sizes)
        is_ours = (record["source"], record["form"]) == (source, IR_FORM)
        return ir if is_whole and is_ours else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def sentence_transformer(path: Path) -> Any:
    """The encoder in the library that it was made with: seconds to import and load."""
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    # A progress bar and a report of unused buffers on stderr: nothing a user can act on.
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    return SentenceTransformer(str(path), device="cpu", local_files_only=True)


async def encode_kept(encoder: Encoder, texts: Sequence[str]) -> Array:
    """As `encoder.encode`, but a SentenceEncoder's vectors are kept on disk for the next start.

    Only its: its id is a hash of what decides them. A damaged file is made anew.
    """
    if not isinstance(encoder, SentenceEncoder):
        return await encoder.encode(texts)
    key = hashlib.sha256(json.dumps([encoder.id, *texts]).encode()).hexdigest()[:16]
    path = home_dir() / "vectors" / f"{key}.npz"
    kept = await asyncio.to_thread(_read_vectors, path)
    if kept is not None and kept.shape == (len(texts), encoder.dim):
        return kept
    rows = await encoder.encode(texts)
    with suppress(OSError):  # a cache that cannot be written only costs the time again
        await asyncio.to_thread(_write_vectors, path, rows)
    return rows


def _read_vectors(path: Path) -> Array | None:
    try:
        # An archive, not a bare array: its checksum reveals a damaged one.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            rows: Array = archive["rows"]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
    return rows if rows.dtype == np.float32 else None


def _write_vectors(path: Path, rows: Array) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        np.savez(partial, rows=rows)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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
