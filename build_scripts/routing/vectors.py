"""Texts to vectors, kept on disk: the sentence encoder's, and the base model's hidden states.

Each space has a folder of its own, named after what decides its vectors; a text's row is looked up
by the text's hash, so that a killed run goes on and two scripts share what they embed. The hidden
states are the paper's comparison: the mean over all tokens and that of the last token, both of the
last layer, after the final norm.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compllm.paths import home_dir
from compllm.routing.embed import Array, SentenceEncoder

MAX_BASE_TOKENS = 64  # of one text: reading all of the longest exam questions would take hours
_TOKENS_A_BATCH = 2048
_SAVE_EVERY = 512  # texts between two writes: what a kill costs at most


@dataclass(frozen=True, slots=True)
class Space:
    """A kind of vector. `embed` yields (position, row) in any order."""

    name: str
    id: str
    embed: Callable[[Sequence[str]], Iterator[tuple[int, Array]]]


def kept_vectors(
    space: Space,
    texts: Sequence[str],
    folder: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Array:
    """float32 [len(texts), dim], in the order of the texts; only new texts are computed."""
    key = hashlib.sha256(space.id.encode()).hexdigest()[:12]
    store = _Store((folder or home_dir() / "vectors") / f"{space.name}-{key}")
    wanted = list(dict.fromkeys(texts))
    missing = [text for text in wanted if text not in store]
    fresh: list[tuple[str, Array]] = []
    for number, (place, row) in enumerate(space.embed(missing) if missing else (), start=1):
        fresh.append((missing[place], row))
        if len(fresh) >= _SAVE_EVERY or number == len(missing):
            store.add(fresh)
            fresh = []
            progress(number, len(missing))
    return np.stack([store[text] for text in texts])


class _Store:
    """Rows by text, in archives that are only ever added."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._rows = folder, dict[str, Array]()
        self._num_parts = 0
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("part-*.npz")):
            with np.load(path, allow_pickle=False) as archive:
                self._rows.update(zip(archive["keys"].tolist(), archive["rows"], strict=True))
            self._num_parts = int(path.stem.partition("-")[2]) + 1

    def __contains__(self, text: str) -> bool:
        return _key(text) in self._rows

    def __getitem__(self, text: str) -> Array:
        return self._rows[_key(text)]

    def add(self, pairs: Sequence[tuple[str, Array]]) -> None:
        keys, rows = [_key(text) for text, _ in pairs], np.stack([row for _, row in pairs])
        path = self._folder / f"part-{self._num_parts:05d}.npz"
        partial = path.with_name(f".{path.name}")
        np.savez(partial, keys=np.array(keys), rows=rows.astype(np.float32))
        partial.replace(path)
        self._num_parts += 1
        self._rows.update(zip(keys, rows, strict=True))


def _key(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]


def sentence_space(encoder: SentenceEncoder) -> Space:
    """The router's own vectors."""

    def embed(texts: Sequence[str]) -> Iterator[tuple[int, Array]]:
        for places in _batches([len(text) for text in texts], 4096):
            rows = asyncio.run(encoder.encode([texts[place] for place in places]))
            yield from zip(places, rows, strict=True)

    return Space("sentence", encoder.id, embed)


def base_spaces(checkpoint: Path, base_sha256: str) -> tuple[Space, Space]:
    """(mean pooling, last token) of the base model's last hidden states; unit rows.

    Computing one computes the other: the second is asked for right after the first.
    """
    base = _Base(checkpoint)

    def space(name: str, place_in_pair: int) -> Space:
        def embed(texts: Sequence[str]) -> Iterator[tuple[int, Array]]:
            for place, pair in base.embed(texts):
                yield place, pair[place_in_pair]

        return Space(name, f"{base_sha256}/{name}/{MAX_BASE_TOKENS}", embed)

    return space("base-mean", 0), space("base-last", 1)


class _Base:
    """The base model in transformers, loaded when it is first asked."""

    def __init__(self, checkpoint: Path) -> None:
        self._checkpoint = checkpoint
        self._loaded: tuple[Any, Any] | None = None
        self._rows: dict[str, tuple[Array, Array]] = {}

    def embed(self, texts: Sequence[str]) -> Iterator[tuple[int, tuple[Array, Array]]]:
        import torch

        model, tokenizer = self._load()
        unknown = [place for place, text in enumerate(texts) if text not in self._rows]
        for place, text in enumerate(texts):
            if text in self._rows:
                yield place, self._rows[text]
        ids = [
            tokenizer(texts[place], truncation=True, max_length=MAX_BASE_TOKENS).input_ids or [0]
            for place in unknown
        ]
        for batch in _batches([len(each) for each in ids], _TOKENS_A_BATCH):
            padded = tokenizer.pad(
                {"input_ids": [ids[place] for place in batch]}, return_tensors="pt"
            )
            with torch.inference_mode():
                states = model(**padded).last_hidden_state.float()
            mask = padded["attention_mask"].unsqueeze(-1).float()
            mean = (states * mask).sum(1) / mask.sum(1)
            ends = padded["attention_mask"].sum(1) - 1
            last = states[torch.arange(len(batch)), ends]
            for row, place in enumerate(batch):
                pair = (_unit(mean[row].numpy()), _unit(last[row].numpy()))
                self._rows[texts[unknown[place]]] = pair
                yield unknown[place], pair

    def _load(self) -> tuple[Any, Any]:
        if self._loaded is None:
            import torch
            from transformers import AutoModel, AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(self._checkpoint)
            tokenizer.padding_side = "right"
            tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
            model = AutoModel.from_pretrained(self._checkpoint, dtype=torch.float32).eval()
            self._loaded = (model, tokenizer)
        return self._loaded


def _batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Positions in groups of like length, each of at most `budget` padded units (or one text)."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: lengths[place]):
        if batch and (len(batch) + 1) * max(1, lengths[place]) > budget:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _unit(row: Array) -> Array:
    return row / max(float(np.linalg.norm(row)), 1e-12)
