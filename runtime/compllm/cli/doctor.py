"""What is installed, what is missing, what to do: the checks of `compllm doctor`.

Each check looks at one thing and never raises: what is wrong with the machine is its answer, and a
broken part hides no other.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compllm import extras, paths, storage
from compllm.errors import CompllmError, ConfigError, ServerError
from compllm.plural import counted

CheckStatus = Literal["ok", "missing", "note"]  # a note is no fault: something could be better

_MIN_MEMORY_GB = 4.0  # the embedded engine with its static decode shapes, and the server
_MIN_DISK_GB = 2.0  # base, encoder, engine and the downloads they come from
_INSTALL_EMBEDDED = extras.install_command("embedded")


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one look. `found` says what is there, `remedy` what to do about it."""

    name: str
    status: CheckStatus
    found: str
    remedy: str = ""


def examine() -> tuple[Check, ...]:
    """Every check, in the order in which faults should be mended."""
    return tuple(check for checks in _CHECKS for check in _guarded(checks))


def _guarded(checks: Callable[[], Iterator[Check]]) -> Iterator[Check]:
    """A part of the embedded server that is not installed is a finding like any other."""
    try:
        yield from checks()
    except ImportError as error:
        name = checks.__name__.strip("_").replace("_", " ")
        yield Check(name, "missing", str(error), extras.hint(error))


def is_healthy(checks: tuple[Check, ...]) -> bool:
    return all(check.status != "missing" for check in checks)


def _python() -> Iterator[Check]:
    found = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    is_right = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield _check("python", is_right, found, "use Python 3.11, 3.12 or 3.13")


def _packages() -> Iterator[Check]:
    """What `up` and the README's commands import, as our own metadata lists it."""
    needed = (*extras.requirements(), *extras.requirements("embedded"))
    problems = [problem for each in needed if (problem := extras.problem_of(each))]
    if not needed:
        yield Check("packages", "missing", "compllm has no metadata", _INSTALL_EMBEDDED)
        return
    found = "; ".join(problems) or f"all {len(needed)} of compllm[embedded]"
    yield _check("packages", not problems, found, _INSTALL_EMBEDDED)


def _openvino() -> Iterator[Check]:
    version, wanted = _installed("openvino"), _required("openvino")
    if version is None:
        yield Check("openvino", "missing", "not installed", _INSTALL_EMBEDDED)
    elif wanted and version != wanted:
        found = f"{version}, but the LoRA operation was built for {wanted}"
        yield Check("openvino", "missing", found, f"pip install openvino=={wanted}")
    else:
        yield Check("openvino", "ok", version)


def _lora_op() -> Iterator[Check]:
    from compllm.embedded.ops import library_path

    library = library_path()
    if library is not None:
        yield Check("LoRA operation", "ok", str(library))
    else:
        found = "not built: adapters go through the slower mask graph"
        remedy = "install compllm from source again, with openvino and a C++ compiler present"
        yield Check("LoRA operation", "note", found, remedy)


def _tritonserver() -> Iterator[Check]:
    from compllm.server import triton_files

    try:
        binary = triton_files.find_tritonserver()
    except ServerError as error:
        yield _fault("tritonserver", error)
        return
    yield Check("tritonserver", "ok", str(binary))
    # Triton's Python backend links libpython dynamically; that of another release breaks ssl.
    try:
        folders = triton_files.environment(binary)["LD_LIBRARY_PATH"].split(os.pathsep)
        yield Check("shared libpython", "ok", folders[0])
    except ServerError as error:
        yield _fault("shared libpython", error)
    try:
        with tempfile.TemporaryDirectory() as scratch:
            triton_files.make_backends(binary, Path(scratch))
        yield Check("Python backend", "ok", f"has a stub for Python {_python_tag()}")
    except ServerError as error:
        yield _fault("Python backend", error)


def _artefacts() -> Iterator[Check]:
    from compllm.formats.checkpoint import validate_checkpoint
    from compllm.formats.manifest import Manifest

    make = "`compllm up` makes it"
    yield _artefact("base model", paths.base_dir(), validate_checkpoint, make)
    yield _artefact("sentence encoder", paths.encoder_dir(), _validate_encoder, make)

    yield _artefact("encoder in OpenVINO", paths.encoder_dir(), _find_encoder_ir, make)

    def read_engine(directory: Path) -> None:
        Manifest.read(directory).verify(directory, is_deep=False)

    yield _artefact("engine", paths.engine_dir(), read_engine, make)


def _artefact(name: str, directory: Path, validate: Callable[[Path], object], remedy: str) -> Check:
    if not directory.is_dir():
        return Check(name, "missing", f"no {directory}", remedy)
    try:
        validate(directory)
    except ConfigError as error:
        return _fault(name, error, remedy)
    return Check(name, "ok", str(directory))


def _validate_encoder(directory: Path) -> None:
    for file in ("modules.json", "tokenizer.json", "model.safetensors"):
        if not (directory / file).is_file():
            raise ConfigError(f"{directory} has no {file}")


def _find_encoder_ir(directory: Path) -> None:
    from compllm.routing.embed import encoder_id, find_ir

    _validate_encoder(directory)
    if find_ir(directory, encoder_id(directory)) is None:
        raise ConfigError("not converted yet: sentence-transformers serves, which loads in seconds")


def _catalogue() -> Iterator[Check]:
    from compllm.backends.adapter_files import check_server_files
    from compllm.catalogue import load_catalogue
    from compllm.cli.shared import found_config
    from compllm.config import load_config

    try:
        config = load_config(found_config(None))
        catalogue = load_catalogue(Path(config.catalogue) if config.catalogue else None)
    except ConfigError as error:
        yield _fault("catalogue", error, "correct it, or leave the setting out")
        return
    names = ", ".join(expert.name for expert in catalogue.experts) or "none"
    yield Check("catalogue", "ok", f"{catalogue.path}: {names}")
    if config.server.url:  # another machine's server may have them
        return
    named = [name for name in (config.server.adapters_dir, config.server.tokenizer) if name]
    try:
        check_server_files(config.server)
    except ConfigError as error:
        yield _fault("settings", error)
    else:
        yield Check("settings", "ok", ", ".join(named) or "name no files of their own")


def _server() -> Iterator[Check]:
    from compllm.server import triton_server

    try:
        server = triton_server.status()
    except ServerError as error:
        yield _fault("server", error)
        return
    if server is None:
        yield Check("server", "note", "not running", "`compllm up` starts it")
    else:
        yield Check("server", "ok", f"{server.grpc_url} (process {server.server_pid})")


def _machine() -> Iterator[Check]:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    found = f"{memory_gb:.1f} GB"
    remedy = f"the embedded engine wants {_MIN_MEMORY_GB:.0f} GB"
    yield _note("memory", memory_gb >= _MIN_MEMORY_GB, found, remedy)
    yield _disk(paths.home_dir())
    flags = cpu_flags()
    vector = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "amx_int8") if flag in flags]
    cores = counted(os.cpu_count() or 1, "core")
    found = f"{cores}, {platform.machine()}, {' '.join(vector) or 'no AVX2'}"
    yield _note("processor", "avx2" in vector, found, "it works without AVX2, but slowly")


def _disk(home: Path) -> Check:
    if (problem := storage.problem_at(home)) is not None:
        return Check("disk", "missing", f"{home}: {problem}", storage.remedy_at(home))
    place = home
    while not place.exists():
        place = place.parent
    free_gb = shutil.disk_usage(place).free / 1e9
    found = f"{free_gb:.1f} GB free for {home}"
    remedy = f"free {_MIN_DISK_GB:.0f} GB, or set COMPLLM_HOME to another disk"
    return _note("disk", free_gb >= _MIN_DISK_GB, found, remedy)


def cpu_flags() -> frozenset[str]:
    """What the processor can do, as Linux names it; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line for line in lines if line.startswith("flags")), "").split())


def _check(name: str, is_ok: bool, found: str, remedy: str) -> Check:
    return Check(name, "ok", found) if is_ok else Check(name, "missing", found, remedy)


def _note(name: str, is_ok: bool, found: str, remedy: str) -> Check:
    return Check(name, "ok", found) if is_ok else Check(name, "note", found, remedy)


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _required(distribution: str) -> str | None:
    """The exact version of it that our own metadata asks for."""
    exact = (
        specifier.version
        for requirement in extras.requirements("embedded")
        if requirement.name == distribution
        for specifier in requirement.specifier
        if specifier.operator == "=="
    )
    return next(exact, None)


def _fault(name: str, error: CompllmError, remedy: str = "") -> Check:
    """Our errors end with their remedy, after the last colon."""
    found, _, told = str(error).rpartition(": ")
    return Check(name, "missing", found or told, remedy or told)


def _python_tag() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]}"


_CHECKS: tuple[Callable[[], Iterator[Check]], ...] = (
    _python,
    _packages,
    _openvino,
    _lora_op,
    _tritonserver,
    _catalogue,
    _artefacts,
    _machine,
    _server,
)
