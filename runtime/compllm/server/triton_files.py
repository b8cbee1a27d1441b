"""What a tritonserver needs before it can start: the binary, its Python backend, its environment
and the model repository. `triton_server.py` runs what is found and written here.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import string
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from compllm.errors import ServerError
from compllm.paths import resource_dir
from compllm.server.triton_state import STATUS_HEADER

CORE_MODEL = "tensorrt_llm"
FACE_MODEL = "comp_llm"  # the whole path, for any Triton client
_STUB = "triton_python_backend_stub"
_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_INSTALL = "install it with `pip install 'compllm[embedded]'`"


def find_tritonserver() -> Path:
    """$TRITONSERVER, else the binary of the nvidia-pytriton package, else PATH's."""
    named = os.environ.get("TRITONSERVER")
    if named:
        if not os.access(named, os.X_OK) or Path(named).is_dir():
            raise ServerError(f"$TRITONSERVER is {named!r}, which is not an executable file")
        return Path(named).resolve()
    package = _pytriton_dir()
    if package is not None and (binary := package / "bin" / "tritonserver").is_file():
        return binary
    found = shutil.which("tritonserver")
    if found is None:
        raise ServerError(f"no tritonserver in $TRITONSERVER, a package or PATH: {_INSTALL}")
    return Path(found).resolve()


def without_status_header(binary: Path, to: Path, name: str) -> Path:
    """A copy of the server's program in `to` that ends a gRPC stream with an error's status for the
    header `name` alone, of as many characters as Triton's own. A program without Triton's header is
    used as it is. Raises ServerError where the copy cannot run; OSError passes through.

    Triton 24.10 crashes when a client sends the header that everybody knows and then a request that
    is refused while another one is still answered. No option of the server closes the header.
    """
    if len(name) != len(STATUS_HEADER):
        raise ValueError(f"the header {name!r} is not of {len(STATUS_HEADER)} characters")
    program = binary.read_bytes()
    if STATUS_HEADER.encode() not in program:  # a script that starts the server, or another Triton
        return binary
    to.mkdir(parents=True, exist_ok=True)
    copy = to / binary.name
    copy.write_bytes(program.replace(STATUS_HEADER.encode(), name.encode()))
    copy.chmod(0o700)  # the name is for the owner alone
    if not os.access(copy, os.X_OK):
        raise ServerError(
            f"{to} is on a file system that runs no programs: set COMPLLM_HOME to another folder"
        )
    return copy


def make_backends(binary: Path, to: Path) -> Path:
    """A backend directory whose Python backend has the stub of this interpreter; links only.

    An installed server (the container's) brings a stub of its own, which must be of our version.
    """
    for tree in (binary.parents[1], Path("/opt/tritonserver")):
        python = tree / "backends" / "python"
        if (python / "libtriton_python.so").is_file():
            break
    else:
        raise ServerError(f"{binary} has no Python backend beside it: {_INSTALL}")
    stub = tree / "python_backend_stubs" / _PYTHON / _STUB
    if not stub.is_file():
        stub = python / _STUB
    if not stub.is_file():
        raise ServerError(
            f"no Python backend stub for Python {_PYTHON} in {tree}: "
            f"use one of {', '.join(_stub_versions(tree)) or 'the versions it was built for'}"
        )
    links = to / "python"
    shutil.rmtree(links, ignore_errors=True)
    links.mkdir(parents=True)
    for file in (python / "libtriton_python.so", python / "triton_python_backend_utils.py", stub):
        (links / file.name).symlink_to(file)
    return to


def environment(binary: Path) -> dict[str, str]:
    """Our environment, changed so that the stub becomes this very interpreter.

    The stub links libpython dynamically: another patch release of it than that of the standard
    library breaks `import ssl`, so ours stands before the package's own libraries.
    """
    env = dict(os.environ)
    libraries = [
        str(_libpython().parent),
        str(binary.parents[3] / "nvidia_pytriton.libs"),
        str(binary.parents[1] / "lib"),  # an installed server's, which a copy finds only here
    ]
    env["LD_LIBRARY_PATH"] = os.pathsep.join(
        [*libraries, *filter(None, [env.get("LD_LIBRARY_PATH")])]
    )
    # Not resolved: in a virtual environment the link itself leads to its packages.
    own = str(Path(sys.executable).parent)
    env["PATH"] = os.pathsep.join([own, *filter(None, [env.get("PATH")])])
    # The stub takes any python3 on PATH for its home unless this contradicts it.
    env.pop("PYTHONHOME", None)
    return env


def write_repository(
    to: Path, values: Mapping[str, str], models: Sequence[str] = (CORE_MODEL,)
) -> Path:
    """Copy the packaged models, with `${name}` in their config.pbtxt replaced by `values`."""
    shutil.rmtree(to, ignore_errors=True)
    for model in models:
        source = resource_dir("triton_repo") / model
        shutil.copytree(source, to / model, ignore=shutil.ignore_patterns("__pycache__"))
        fill_config(to, model, values)
    return to


def fill_config(repository: Path, model: str, values: Mapping[str, str]) -> None:
    """Write a model's config.pbtxt as a whole, from the packaged one. OSError passes through."""
    quoted = {key: value.replace("\\", "\\\\").replace('"', '\\"') for key, value in values.items()}
    text = (resource_dir("triton_repo") / model / "config.pbtxt").read_text(encoding="utf-8")
    config = repository / model / "config.pbtxt"
    partial = config.with_suffix(".partial")
    partial.write_text(string.Template(text).substitute(quoted), encoding="utf-8")
    partial.replace(config)


def _pytriton_dir() -> Path | None:
    """Found without importing it: the package itself pulls a large tree in."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "tritonserver"


def _stub_versions(tree: Path) -> Iterator[str]:
    return (each.name for each in sorted((tree / "python_backend_stubs").glob("*")))


def _libpython() -> Path:
    name = sysconfig.get_config_var("INSTSONAME") or f"libpython{_PYTHON}.so.1.0"
    if not str(name).endswith(".a"):
        for folder in _library_folders():
            if (folder / name).is_file():
                return folder / name
    raise ServerError(
        f"Python {_PYTHON} at {sys.base_prefix} has no shared libpython, which Triton's Python "
        "backend needs: use an interpreter built with --enable-shared, or install the package "
        f"libpython{_PYTHON}"
    )


def _library_folders() -> Iterator[Path]:
    configured = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    yield configured
    if multiarch := sysconfig.get_config_var("MULTIARCH"):
        yield configured / multiarch  # Debian
    yield Path(sys.base_prefix) / "lib"  # relocated builds keep the builder's LIBDIR
