"""manifest.json of an engine directory: what it was built from, and the hash of every file in it.

`build_openvino.py` writes it, `Executor` and `doctor` read it before they open anything else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from compllm.errors import ArtefactError
from compllm.formats.adapters import Adapter, load_adapter_npz
from compllm.formats.json_files import read_json
from compllm.formats.shape import BaseShape

FORMAT = "compllm-engine/1"  # rises when older engines can no longer be read
MANIFEST_FILE = "manifest.json"
_AGAIN = "build it again with build_openvino.py"


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A file of the engine directory."""

    size: int  # bytes
    sha256: str


@dataclass(frozen=True, slots=True)
class AdapterEntry:
    """An adapter of the engine. Slots are its places in the batch; slot 0 is the base."""

    name: str
    slot: int  # from 1, in order
    task_id: int  # lora_task_id on the wire
    rank: int  # largest of its modules
    num_modules: int  # adapted layers x modules
    sha256: str  # of its factors
    file: str  # below the engine directory


@dataclass(frozen=True, slots=True)
class Manifest:
    """The record of one embedded engine."""

    base_name: str
    base_sha256: str  # of the checkpoint's weights
    base_key: str  # of everything the base's files were made from; equal keys need no new build
    dtype: str  # int8 | fp16
    versions: Mapping[str, str]  # of compllm, openvino and numpy at the build
    limits: Mapping[str, int]  # max_seq_len, vocab_size, max_lora_rank
    base_files: tuple[str, ...]  # what the base step wrote
    tokenizer_files: tuple[str, ...]
    adapters: tuple[AdapterEntry, ...]  # in the order of their slots
    files: Mapping[str, FileEntry]  # every file but the manifest, by path below the directory

    def write(self, directory: Path) -> None:
        """Into `directory`, which is being made and not yet in use."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=2)
        (directory / MANIFEST_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Raises ArtefactError when there is none, when it is damaged or of another format."""
        path = directory / MANIFEST_FILE
        if not path.is_file():
            raise ArtefactError(
                f"{directory} is not an engine directory (no manifest.json): {_AGAIN}"
            )
        value = read_json(path)
        form = value.pop("format", None)
        if form != FORMAT:
            raise ArtefactError(
                f"{path} has format {form!r}, this version reads {FORMAT!r}: {_AGAIN}"
            )
        try:
            return _parse(value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(f"{path} is damaged ({error!r}): {_AGAIN}") from error

    def verify(
        self, directory: Path, *, base_sha256: str | None = None, is_deep: bool = True
    ) -> None:
        """Raises ArtefactError unless the directory holds exactly what was built, by this OpenVINO.

        base_sha256: the base it must be of; None takes any. is_deep: hashes too, not only sizes.
        """
        if base_sha256 is not None and base_sha256 != self.base_sha256:
            raise ArtefactError(
                f"engine {directory} is of base {self.base_name} ({self.base_sha256[:12]}), "
                f"not of the base in use ({base_sha256[:12]}): {_AGAIN}"
            )
        built, installed = self.versions.get("openvino"), installed_versions()["openvino"]
        if built != installed:
            raise ArtefactError(
                f"engine {directory} was built with openvino {built}, "
                f"installed is {installed}: {_AGAIN}"
            )
        verify_files(directory, self.files, remedy=_AGAIN, is_deep=is_deep)

    def load_adapters(self, directory: Path, base: BaseShape) -> tuple[Adapter, ...]:
        """The adapters by slot. Raises ArtefactError when one is not the recorded one."""
        adapters = tuple(load_adapter_npz(directory / entry.file, base) for entry in self.adapters)
        for adapter, entry in zip(adapters, self.adapters, strict=True):
            if (adapter.name, adapter.task_id) != (entry.name, entry.task_id):
                raise ArtefactError(
                    f"{directory / entry.file} is not adapter {entry.name}: {_AGAIN}"
                )
        return adapters


def verify_files(
    directory: Path, files: Mapping[str, FileEntry], *, remedy: str, is_deep: bool = True
) -> None:
    """Raises ArtefactError unless every file is there as recorded.

    remedy: what to do then, the end of the error. is_deep: hashes too, not only sizes.
    """
    for name, entry in files.items():
        path = directory / name
        try:
            is_same = path.stat().st_size == entry.size and (
                not is_deep or sha256_file(path) == entry.sha256
            )
        except OSError as error:
            raise ArtefactError(f"{path} cannot be read ({error.strerror}): {remedy}") from error
        if not is_same:
            raise ArtefactError(f"{path} is damaged (its hash or size differs): {remedy}")


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def installed_versions() -> dict[str, str]:
    """The versions that decide whether an engine can be used here; 'none' where not installed."""
    return {name: _version(name) for name in ("compllm", "openvino", "numpy")}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _parse(value: dict[str, Any]) -> Manifest:
    files = {_below(name): FileEntry(**entry) for name, entry in value["files"].items()}
    adapters = tuple(AdapterEntry(**entry) for entry in value["adapters"])
    for slot, entry in enumerate(adapters, 1):
        if entry.slot != slot or entry.file not in files or not 0 < entry.task_id < 2**63:
            raise ValueError(f"adapter {entry.name} in slot {entry.slot}")
    lists = {key: tuple(value[key]) for key in ("base_files", "tokenizer_files")}
    return Manifest(**{**value, **lists, "adapters": adapters, "files": files})


def _below(name: str) -> str:
    """A relative path that stays inside the engine directory."""
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"file {name!r} is outside the engine directory")
    return name
