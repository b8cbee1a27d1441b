"""The base: which one is used, which there are, and what a change of bases means.

`fetch_base.py` fetches the known ones and selects a checkpoint, `gguf_checkpoint.py` makes one of a
GGUF file. Each base has an engine folder of its own, so that a change keeps what was built for the
other.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from compllm import paths
from compllm.build_scripts import gguf_checkpoint
from compllm.build_scripts.fetch_base import (
    PARTS,
    default_is_there,
    ensure_parts,
    select_checkpoint,
)
from compllm.build_scripts.staging import exclusive, say, staged_directory, write_atomically
from compllm.catalogue import load_catalogue, shipped_catalogue_path
from compllm.errors import ArtefactError, ConfigError
from compllm.formats.checkpoint import validate_checkpoint
from compllm.formats.manifest import Manifest, sha256_file
from compllm.formats.peft_config import base_name
from compllm.formats.shape import BaseShape
from compllm.formats.tokenizer_files import check_template
from compllm.prompts import TEMPLATES

DEFAULT = "smollm2-135m-instruct"
_ALONE = """\
# The catalogue of the base {base}, written by `compllm base use`.
# No shipped adapter is made for it. A project (`compllm init`) has experts for it.
[base]
domain = "anything"
system = "{system}"
template = "{template}"

[router]
threshold = {threshold}
encoder = "{encoder}"
"""


@dataclass(frozen=True, slots=True)
class Base:
    """A base that can be used, as `base list` and `base show` report it."""

    name: str
    path: Path
    is_in_use: bool
    is_there: bool  # False: `base use` fetches it
    engine: str  # the engine's folder; empty: none is built

    @property
    def state(self) -> str:
        return "in use" if self.is_in_use else "there" if self.is_there else "to be fetched"


def known_bases() -> tuple[Base, ...]:
    """The known names, and the checkpoint in use where it has none."""
    chosen = paths.selected_base()
    default = paths.default_base_dir()
    found = [_base(DEFAULT, default, is_there=default_is_there())]
    for name, parts in PARTS.items():
        path = parts.directory
        found.append(_base(name, path, is_there=path.is_dir()))
    if chosen is not None and all(chosen != each.path.absolute() for each in found):
        found.append(_base(str(chosen), chosen, is_there=chosen.is_dir()))
    return tuple(found)


def base_in_use() -> Base:
    return next(each for each in known_bases() if each.is_in_use)


def use_base(wanted: str) -> BaseShape:
    """Make a known name, a checkpoint's folder or a GGUF file the base from now on.

    Raises ConfigError and ArtefactError with what does not fit; the base in use then stays.
    """
    path = Path(wanted).expanduser()
    if wanted.lower() == DEFAULT:
        select_checkpoint(None)
        if default_is_there():
            return validate_checkpoint(paths.default_base_dir())
        from compllm.build_scripts.fetch_base import ensure_base

        return validate_checkpoint(ensure_base())
    if wanted.lower() in PARTS:
        path = ensure_parts(PARTS[wanted.lower()])
    elif path.is_file() and path.suffix.lower() == ".gguf":
        path = _of_gguf(path)
    elif not path.is_dir():
        raise ConfigError(
            f"no base {wanted!r}: give the folder of a Hugging Face checkpoint, a .gguf file, or "
            f"one of {', '.join((DEFAULT, *PARTS))}"
        )
    shape = validate_checkpoint(path)
    template = fitting_template(path)
    select_checkpoint(path)
    if not fits_shipped():
        shipped = load_catalogue(shipped_catalogue_path())
        write_atomically(
            paths.base_catalogue(),
            _ALONE.format(
                base=path,
                system=shipped.base.system,
                template=template,
                threshold=shipped.router.threshold,
                encoder=shipped.router.encoder,
            ),
        )
    return shape


def template_in_use() -> str:
    """The name of the chat template that the base in use is prompted with. Raises ConfigError."""
    chosen = paths.selected_base()
    return fitting_template(chosen) if chosen is not None else "chatml"


def fitting_template(checkpoint: Path) -> str:
    """The first template whose turns the checkpoint knows. Raises ConfigError where none is."""
    problem: ConfigError | None = None
    for name, template in TEMPLATES.items():
        try:
            check_template(checkpoint, template)
        except ConfigError as error:
            problem = problem or error
        else:
            return name
    assert problem is not None
    raise problem


def fits_shipped() -> bool:
    """Whether the shipped adapters are made for the base in use."""
    chosen = paths.selected_base()
    if chosen is None:
        return True
    name = validate_checkpoint(chosen).name.lower()
    shipped_here = load_catalogue(shipped_catalogue_path()).adapters
    shipped = [each.path for each in shipped_here if each.path is not None]
    return bool(shipped) and all(base_name(path).lower() in ("", name) for path in shipped)


def _base(name: str, path: Path, *, is_there: bool) -> Base:
    is_in_use = paths.base_dir() == path.absolute()
    engine = ""
    if is_in_use or is_there:
        place = paths.engine_dir_of(None if path == paths.default_base_dir() else path.resolve())
        engine = str(place) if _is_engine(place) else ""
    return Base(name, path, is_in_use, is_there, engine)


def _is_engine(place: Path) -> bool:
    try:
        Manifest.read(place)
    except ArtefactError:
        return False
    return True


def _of_gguf(gguf: Path) -> Path:
    """A checkpoint with the weights and the tokenizer of a GGUF file, made once. Raises
    ArtefactError for a family or a tokenizer that is not known."""
    sha256 = sha256_file(gguf)
    target = paths.home_dir() / "base" / f"{gguf.stem}-{sha256[:8]}"
    with exclusive(target):
        if not target.is_dir():
            say(f"converting {gguf} to a Hugging Face checkpoint (once)")
            with staged_directory(target) as partial:
                source = partial / "model.gguf"
                try:
                    source.hardlink_to(gguf.resolve())
                except OSError:
                    shutil.copyfile(gguf, source)
                gguf_checkpoint.convert(source, partial)
                source.unlink()
                validate_checkpoint(partial)
    return target
