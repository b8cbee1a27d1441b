"""Where things are on disk: the cache of built artefacts, the data files of the package."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs

PROJECT_FILE = "compllm.toml"  # settings and catalogue of a project folder


def find_project(start: Path) -> Path | None:
    """The project file of a folder or of the nearest one above it; None where there is none."""
    start = start.absolute()
    for folder in (start, *start.parents):
        if (folder / PROJECT_FILE).is_file():
            return folder / PROJECT_FILE
    return None


def home_dir() -> Path:
    """`$COMPLLM_HOME`, else `compllm` in the user's cache directory. Not created here."""
    value = os.environ.get("COMPLLM_HOME")
    return Path(value).expanduser() if value else Path(platformdirs.user_cache_dir("compllm"))


def resource_dir(name: str) -> Path:
    """The folder `triton_repo`, `engines` or `build_scripts`: inside the installed package, or, in
    a source checkout, at its top. Raises FileNotFoundError for another name."""
    package = Path(__file__).resolve().parent
    for candidate in (package / name, package.parents[1] / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"no {name!r} folder beside {package}: the installation is incomplete")


def default_base_dir() -> Path:
    """The base model that `fetch_base.py` fetches, a Hugging Face checkpoint directory."""
    return home_dir() / "base" / "SmolLM2-135M-Instruct"


def selected_base() -> Path | None:
    """The user's checkpoint, where `fetch_base.py --checkpoint` chose one; may be gone since."""
    link = home_dir() / "base" / "selected"
    return link.readlink() if link.is_symlink() else None


def base_dir() -> Path:
    """The base model in use, a Hugging Face checkpoint directory."""
    return selected_base() or default_base_dir()


def base_catalogue() -> Path:
    """The catalogue of a selected base for which nothing is shipped: the base alone."""
    return home_dir() / "base" / "experts.toml"


def encoder_dir() -> Path:
    """The fetched sentence encoder, a sentence-transformers directory."""
    return home_dir() / "encoder" / "all-MiniLM-L6-v2"


def engine_dir() -> Path:
    """The embedded engine of the base in use, as `build_openvino.py` writes it. Each base has its
    own, so that a change of bases loses none."""
    return engine_dir_of(selected_base())


def engine_dir_of(base: Path | None) -> Path:
    """The engine's folder of a selected checkpoint; None: of the default base."""
    name = "embedded"
    if base is not None:
        name += f"-{base.name}-{hashlib.sha256(os.fsencode(base)).hexdigest()[:8]}"
    return home_dir() / "engines" / name


def run_dir() -> Path:
    """State and logs of running servers."""
    return home_dir() / "run"
