"""What the manifests of engines are made of: hashes of checkpoints, inputs and built files.

The embedded engine's record itself is `compllm.formats.manifest`, since the runtime reads it too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from compllm.errors import ArtefactError
from compllm.formats.checkpoint import weight_files
from compllm.formats.json_files import read_json
from compllm.formats.manifest import FileEntry, sha256_file
from compllm.formats.tokenizer_files import OPTIONAL_TOKENIZER_FILES, TOKENIZER_FILES

_MAX_HEADER_BYTES = 100_000_000  # the limit that safetensors itself sets


def weights_sha256(checkpoint: Path) -> str:
    """Hash of a checkpoint's tensors: names, types, shapes and content, not the files' metadata.

    The same weights saved by another version of transformers keep their hash.
    """
    paths = weight_files(checkpoint)
    states = [path.stat() for path in paths]
    found = zip(paths, states, strict=True)
    return _hash_of(tuple((str(path), each.st_size, each.st_mtime_ns) for path, each in found))


@lru_cache(4)  # one command asks for it several times
def _hash_of(files: tuple[tuple[str, int, int], ...]) -> str:
    """Of files of this size and time of change."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        with open(path, "rb") as handle:
            length = int.from_bytes(handle.read(8), "little")
            if length > _MAX_HEADER_BYTES:
                raise ArtefactError(f"{path} is damaged: its header has {length} bytes")
            header = json.loads(handle.read(length))
            header.pop("__metadata__", None)
            digest.update(json.dumps(header, sort_keys=True).encode())
            while block := handle.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def copied_files(checkpoint: Path) -> tuple[str, ...]:
    """The small files of a checkpoint that travel with an engine: config and tokenizer."""
    names = ("config.json", "generation_config.json", *TOKENIZER_FILES, *OPTIONAL_TOKENIZER_FILES)
    return tuple(name for name in names if (checkpoint / name).is_file())


def base_key(checkpoint: Path, base_sha256: str, **settings: str) -> str:
    """One hash over everything that the files of a built base depend on."""
    config = read_json(checkpoint / "config.json")
    for irrelevant in ("_name_or_path", "transformers_version"):
        config.pop(irrelevant, None)
    small = {
        name: sha256_file(checkpoint / name)
        for name in copied_files(checkpoint)
        if name != "config.json"
    }
    inputs = {"weights": base_sha256, "config": config, "files": small, "settings": settings}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


def file_entries(directory: Path, names: Iterable[str]) -> dict[str, FileEntry]:
    """Size and hash of files below `directory`."""
    return {
        name: FileEntry((directory / name).stat().st_size, sha256_file(directory / name))
        for name in sorted(names)
    }
