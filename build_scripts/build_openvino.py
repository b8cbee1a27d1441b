"""Build the embedded engine: a checkpoint and any number of PEFT LoRA adapters -> one directory.

    python build_scripts/build_openvino.py                              base and shipped adapters
    python build_scripts/build_openvino.py --adapter chem=DIR --adapter DIR
    python build_scripts/build_openvino.py --add-adapter DIR --remove-adapter chem
    python build_scripts/build_openvino.py --checkpoint DIR --dtype fp16 --out DIR

The base and the adapters are separate steps: what is unchanged is linked from the engine that is
there, so adding an adapter never builds the base again. After fetch_base.py, before `compllm up`.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from compllm.build_scripts.fetch_base import ensure_base
from compllm.build_scripts.manifest import base_key, copied_files, file_entries, weights_sha256
from compllm.build_scripts.staging import (
    exclusive,
    recover,
    require_free_space,
    run_script,
    saving,
    say,
    staged_directory,
)
from compllm.embedded import model
from compllm.errors import ArtefactError
from compllm.formats.adapters import Adapter, check_adapter_name, read_peft, save_adapter_npz
from compllm.formats.checkpoint import validate_checkpoint, weight_files
from compllm.formats.json_files import read_json
from compllm.formats.manifest import (
    MANIFEST_FILE,
    AdapterEntry,
    FileEntry,
    Manifest,
    installed_versions,
)
from compllm.formats.peft_config import base_name, base_sha256
from compllm.formats.shape import BaseShape
from compllm.formats.tokenizer_files import OPTIONAL_TOKENIZER_FILES, TOKENIZER_FILES
from compllm.paths import engine_dir, resource_dir


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """A PEFT directory and the name the engine will know it by."""

    directory: Path
    name: str
    is_same_base: bool = False  # made for the engine's base, whatever name it records

    @classmethod
    def parse(cls, text: str, *, is_same_base: bool = False) -> AdapterSource:
        """`DIR` or `name=DIR`. A name is recognised by being one, so paths may hold '='."""
        head, sep, tail = text.partition("=")
        if sep and tail and "/" not in head:
            return cls(Path(tail).expanduser(), check_adapter_name(head), is_same_base)
        directory = Path(text).expanduser()
        return cls(directory, check_adapter_name(directory.resolve().name), is_same_base)

    def read(self, base: BaseShape) -> Adapter:
        """Raises ArtefactError when it does not fit `base`."""
        return read_peft(self.directory, base, self.name, is_same_base=self.is_same_base)


def shipped_folder() -> Path:
    return resource_dir("engines") / "adapters"


def default_adapters(checkpoint: Path | None = None) -> tuple[AdapterSource, ...]:
    """The adapters that travel with the package: every PEFT directory under engines/adapters/.

    checkpoint: leave out those of another base; no caller asked for them by name.
    """
    found = tuple(
        AdapterSource(path.parent, check_adapter_name(path.parent.name))
        for path in sorted(shipped_folder().glob("*/adapter_config.json"))
    )
    if checkpoint is None:
        return found
    base = validate_checkpoint(checkpoint).name
    named = [each for each in found if base_name(each.directory).lower() in ("", base.lower())]
    recorded = {each: base_sha256(each.directory) for each in named}
    ours = weights_sha256(checkpoint) if any(recorded.values()) else ""
    fitting = tuple(each for each in named if recorded[each] in ("", ours))
    if len(fitting) < len(found):
        others = ", ".join(each.name for each in found if each not in fitting)
        say(f"shipped adapters made for another base than {base} are left out: {others}")
    return fitting


def build_engine(
    checkpoint: Path, adapters: Sequence[AdapterSource], out: Path, dtype: str = "int8"
) -> Manifest:
    """Make `out` the engine of this checkpoint with exactly these adapters, in this order of slots.

    Does only what is missing, and replaces `out` as a whole at the end. Raises ArtefactError for a
    checkpoint, an adapter or an `out` that cannot be used; OSError for the disk.
    """
    if dtype not in model.DTYPES:
        raise ArtefactError(f"dtype {dtype!r} is not known; known are {', '.join(model.DTYPES)}")
    out = out.resolve()
    _refuse_foreign(out)
    shape = validate_checkpoint(checkpoint)
    sha256 = weights_sha256(checkpoint)
    shape = replace(shape, sha256=sha256)
    key = base_key(
        checkpoint,
        sha256,
        dtype=dtype,
        builder=_builder_hash(),
        openvino=installed_versions()["openvino"],
    )
    wanted = tuple(source.read(shape) for source in adapters)
    _refuse_duplicates(adapter.name for adapter in wanted)
    with exclusive(out):
        recover(out)
        old = _reusable(out)
        if old is not None and old.base_key == key and _is_same(old, wanted):
            say(f"engine is up to date: {out}")
            return old
        with staged_directory(out) as partial:
            if old is not None and old.base_key == key:
                base_files = _take_over(old, out, partial)
            else:
                base_files = _build_base(checkpoint, partial, dtype)
            manifest = Manifest(
                base_name=shape.name,
                base_sha256=sha256,
                base_key=key,
                dtype=dtype,
                versions=installed_versions(),
                limits=_limits(checkpoint, shape),
                base_files=tuple(sorted(base_files)),
                tokenizer_files=_tokenizer_files(base_files),
                adapters=(),
                files=base_files,
            )
            manifest = _finish(manifest, wanted, partial)
    say(f"engine ready: {out}")
    return manifest


def _builder_hash() -> str:
    """Of the code that builds a base; a number to raise by hand would be forgotten."""
    return hashlib.sha256(Path(model.__file__).read_bytes()).hexdigest()


def update_adapters(
    out: Path, add: Sequence[AdapterSource] = (), remove: Sequence[str] = ()
) -> Manifest:
    """Add adapters to the engine in `out` and remove others; a same-named one keeps its slot.

    Needs no checkpoint. Raises ArtefactError when `out` is no engine or lacks an adapter of that
    name.
    """
    out = out.resolve()
    _refuse_duplicates(source.name for source in add)
    with exclusive(out):
        recover(out)
        old = Manifest.read(out)
        old.verify(out)
        shape = _engine_shape(old, out)
        wanted = {adapter.name: adapter for adapter in old.load_adapters(out, shape)}
        for name in remove:
            if wanted.pop(name, None) is None:
                there = ", ".join(entry.name for entry in old.adapters) or "none"
                raise ArtefactError(f"engine {out} has no adapter {name!r}; it has {there}")
        for source in add:
            wanted[source.name] = source.read(shape)
        if _is_same(old, tuple(wanted.values())):
            say(f"engine is up to date: {out}")
            return old
        with staged_directory(out) as partial:
            base_files = _take_over(old, out, partial)
            manifest = _finish(replace(old, files=base_files), tuple(wanted.values()), partial)
    say(f"engine ready: {out}")
    return manifest


def _build_base(checkpoint: Path, partial: Path, dtype: str) -> dict[str, FileEntry]:
    """The base step: weights, config and tokenizer into `partial`."""
    size = sum(path.stat().st_size for path in weight_files(checkpoint))
    require_free_space(partial, size, "building the engine")
    say(f"building the base of the engine ({dtype})")
    started = time.monotonic()
    with saving("building the engine", partial):
        model.build_base(checkpoint, partial, dtype)
    for name in copied_files(checkpoint):
        shutil.copyfile(checkpoint / name, partial / name)
    for path in partial.iterdir():
        path.chmod(0o644)  # safetensors writes for its owner alone; a server may be another user
    say(f"base built in {time.monotonic() - started:.0f} s")
    return file_entries(partial, (path.name for path in partial.iterdir()))


def _take_over(old: Manifest, out: Path, partial: Path) -> dict[str, FileEntry]:
    """The base's files of the engine that is there, as links where the disk can."""
    for name in old.base_files:
        try:
            os.link(out / name, partial / name)
        except OSError:
            shutil.copyfile(out / name, partial / name)
    return {name: old.files[name] for name in old.base_files}


def _finish(manifest: Manifest, adapters: Sequence[Adapter], partial: Path) -> Manifest:
    """The adapter step, and the manifest over both. `manifest.files` are the base's."""
    entries = []
    (partial / "adapters").mkdir()
    for slot, adapter in enumerate(adapters, 1):
        file = f"adapters/{adapter.name}.npz"
        save_adapter_npz(partial / file, adapter)
        entries.append(
            AdapterEntry(
                name=adapter.name,
                slot=slot,
                task_id=adapter.task_id,
                rank=adapter.rank,
                num_modules=len(adapter.modules),
                sha256=adapter.sha256,
                file=file,
            )
        )
    finished = replace(
        manifest,
        adapters=tuple(entries),
        limits={**manifest.limits, "max_lora_rank": max((e.rank for e in entries), default=0)},
        files={**manifest.files, **file_entries(partial, (entry.file for entry in entries))},
    )
    finished.write(partial)
    return finished


def _reusable(out: Path) -> Manifest | None:
    """The engine that is there, when it is whole; None makes the build start from nothing."""
    if not (out / MANIFEST_FILE).is_file():
        return None
    try:
        manifest = Manifest.read(out)
        manifest.verify(out)
    except ArtefactError as error:
        say(f"building anew: {error}")
        return None
    return manifest


def _is_same(manifest: Manifest, adapters: Sequence[Adapter]) -> bool:
    there = [(entry.name, entry.sha256) for entry in manifest.adapters]
    return there == [(adapter.name, adapter.sha256) for adapter in adapters]


def _refuse_foreign(out: Path) -> None:
    """Never replace a directory that this script did not make. The home's own is always ours, even
    where its manifest is empty or torn."""
    if not out.exists() or (out.is_dir() and out == engine_dir().resolve()):
        return
    if not out.is_dir():
        raise ArtefactError(f"{out} is a file: give a directory for the engine")
    if not any(out.iterdir()):
        return
    is_ours = (out / MANIFEST_FILE).is_file() and str(
        read_json(out / MANIFEST_FILE).get("format")
    ).startswith("compllm-engine/")
    if not is_ours:
        raise ArtefactError(f"{out} holds other files and is not replaced: give an empty directory")


def _refuse_duplicates(names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ArtefactError(f"adapter {name} is given twice: name one of them with NAME=DIR")
        seen.add(name)


def _limits(checkpoint: Path, shape: BaseShape) -> dict[str, int]:
    context = read_json(checkpoint / "config.json").get("max_position_embeddings")
    if not isinstance(context, int) or context < 1:
        raise ArtefactError(f"config.json: max_position_embeddings is {context!r}")
    return {"max_seq_len": context, "vocab_size": shape.vocab}


def _tokenizer_files(names: Iterable[str]) -> tuple[str, ...]:
    known = (*TOKENIZER_FILES, *OPTIONAL_TOKENIZER_FILES)
    return tuple(name for name in names if name in known)


def _engine_shape(manifest: Manifest, out: Path) -> BaseShape:
    config = read_json(out / "config.json")
    return BaseShape.from_config(config, name=manifest.base_name, sha256=manifest.base_sha256)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the embedded engine.")
    parser.add_argument("--checkpoint", type=Path, metavar="DIR", help="default: the fetched base")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: in the cache")
    parser.add_argument("--dtype", choices=model.DTYPES, default="int8", help="weights of the base")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--adapter", action="append", metavar="[NAME=]DIR", help="these, not the shipped ones"
    )
    choice.add_argument("--no-adapters", action="store_true", help="the bare base")
    parser.add_argument(
        "--add-adapter", action="append", default=[], metavar="[NAME=]DIR", help="one more"
    )
    parser.add_argument(
        "--remove-adapter", action="append", default=[], metavar="NAME", help="one less"
    )
    parser.add_argument(
        "--same-base",
        action="store_true",
        help="the adapters given are made for this base, whatever name they record",
    )
    options = parser.parse_args(arguments)
    is_update = bool(options.add_adapter or options.remove_adapter)
    if is_update and (options.adapter or options.no_adapters or options.checkpoint):
        parser.error(
            "--add-adapter and --remove-adapter change the engine that is there: "
            "they go without --adapter, --no-adapters and --checkpoint"
        )

    parse = partial(AdapterSource.parse, is_same_base=options.same_base)

    def work() -> None:
        out = options.out or engine_dir()
        if is_update:
            added = [parse(text) for text in options.add_adapter]
            manifest = update_adapters(out, added, options.remove_adapter)
        else:
            checkpoint = options.checkpoint or ensure_base()
            if options.adapter or options.no_adapters:
                adapters = tuple(parse(text) for text in options.adapter or ())
            else:
                adapters = default_adapters(checkpoint)
            manifest = build_engine(checkpoint, adapters, out, options.dtype)
        _print(manifest, out)

    return run_script(work)


def _print(manifest: Manifest, out: Path) -> None:
    size = sum(entry.size for entry in manifest.files.values())
    print(f"engine   {out} ({manifest.base_name}, {manifest.dtype}, {size / 1e6:.0f} MB)")
    for entry in manifest.adapters:
        print(
            f"slot {entry.slot:<3} {entry.name} (rank {entry.rank}, lora_task_id {entry.task_id})"
        )


if __name__ == "__main__":
    sys.exit(main())
