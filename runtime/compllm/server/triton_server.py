"""The embedded server: a real tritonserver on loopback that serves one engine.

`up` leaves one behind for every process of the user (state and log are in `paths.run_dir()`);
`running` owns one for as long as a block lasts. `triton_process.py` starts and stops them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from compllm import paths
from compllm.catalogue import load_catalogue
from compllm.config import load_config
from compllm.errors import ConfigError, ServerError
from compllm.server import triton_process
from compllm.server.health import NoAnswer, is_foreign, is_ready, name_of, says_ready
from compllm.server.server_log import reason_in
from compllm.server.supervisor import CLIENTS_FILE
from compllm.server.triton_files import FACE_MODEL
from compllm.server.triton_process import is_alive, is_running, is_starting
from compllm.server.triton_state import (
    Ports,
    ServerInfo,
    forget_state,
    read_state,
    write_state,
)
from compllm.storage import require_writable

__all__ = ["ServerInfo", "check_up", "down", "last_started", "running", "status", "up", "use"]

# That a client waits for a server that starts again: the longest pause between two starts, and a
# start on a machine that others use.
RESTART_WAIT_S = 60.0
WAIT_STEP_S = 0.1
_held: list[BinaryIO] = []  # see `use`
DYING_S = 3.0  # that a killed server takes at most to be gone, on cores that others use


def up(
    engine_dir: str | Path | None = None,
    *,
    grpc_port: int | None = None,
    http_port: int | None = None,
    metrics_port: int | None = None,
    options: Mapping[str, Any] | None = None,
    has_face: bool = False,
    config: str | Path | None = None,
    timeout_s: float = 60.0,
) -> ServerInfo:
    """Start the user's server, or find the one of this engine that is already healthy.

    A port of None or 0 is a free one. HTTP is closed at None; 0 is a free port for it. options:
    fields of `options.ExecutorOptions`. has_face: with
    the model `comp_llm` too, which needs the sentence encoder; config: its settings, else those of
    the environment. A server that died, or whose engine, settings or catalogue changed since, is
    replaced. Raises ConfigError, and ServerError, naming what stands in the way.
    """
    engine = _checked_engine(engine_dir)
    settings = Path(config).resolve() if config else None
    ports = Ports(grpc_port or None, http_port, metrics_port or None)
    with lock():
        found = read_state()
        if found is not None and is_alive(found):
            _check_same(found, engine, ports, options, has_face, settings)
            settings = settings or (Path(found.config_file) if found.config_file else None)
            for _ in range(2):  # it may die just when it is asked
                if is_starting(found) and not is_foreign(found):
                    triton_process.wait_ready(found, time.monotonic() + timeout_s, timeout_s)
                    found = read_state() or found  # another process of the server
                if answers(found):
                    if _is_current(found, engine):
                        return found
                    break
        if found is not None:
            _stop(found)  # a stub may have outlived a killed one
        hashed = settings_hash(settings) if has_face else ""
        info = triton_process.start(
            engine,
            paths.run_dir() / "server",
            ports,
            options=options,
            has_face=has_face,
            config=settings,
            timeout_s=timeout_s,
        )
        info = replace(info, settings_hash=hashed)
        try:
            write_state(info)
        except OSError:
            _stop(info)
            raise
        triton_process.release(info)  # not before: killed up to here, we leave nothing behind
        return info


def check_up(
    *,
    grpc_port: int | None = None,
    http_port: int | None = None,
    metrics_port: int | None = None,
    has_face: bool = False,
    config: str | Path | None = None,
) -> ServerInfo | None:
    """The live server of the default engine, where there is one. Changes nothing: for a look before
    anything is built that a live server may have in use.

    Raises ServerError where `up` with these arguments would refuse: another server lives, or a port
    is taken.
    """
    ports = Ports(grpc_port or None, http_port, metrics_port or None)
    settings = Path(config).resolve() if config else None
    found = read_state()
    if found is None or not is_alive(found):
        triton_process.check_free(ports)
        return None
    _check_same(found, paths.engine_dir().expanduser().resolve(), ports, None, has_face, settings)
    return found


def status(*, wait_s: float = 0.0) -> ServerInfo | None:
    """The server that `up` started, ready; None when there is none. wait_s: how long to wait for
    one that its supervisor starts again.

    Raises ServerError when there should be one but it died, hangs, or another server answers at its
    port.
    """
    info = read_state()
    if info is None:
        return None
    deadline = time.monotonic() + wait_s
    while is_alive(info):
        if is_ready(info):
            return info
        if time.monotonic() >= deadline:
            break
        time.sleep(WAIT_STEP_S)
        info = read_state() or info
    if is_starting(info) and not is_foreign(info):
        raise ServerError(
            f"the server starts again{reason_in(Path(info.log))}; log: {info.log}. Wait some "
            "seconds"
        )
    if is_alive(info) and answers(info):
        return info
    # The log's last reason would be that of an earlier death, after which it was started again.
    raise ServerError(
        f"the server (process {info.server_pid}) died: its supervisor (process {info.pid}) is "
        f"gone, killed or by a restart of the machine; log: {info.log}. `compllm up` starts it "
        "again"
    )


def last_started() -> ServerInfo | None:
    """The server that `up` started, where it lives; it is not asked whether it is ready. Raises
    ServerError for a state that cannot be read."""
    info = read_state()
    return info if info is not None and is_alive(info) else None


def use(info: ServerInfo) -> None:
    """Until this process ends, `down` waits for its queries, some seconds at most."""
    path = Path(info.log).parent / CLIENTS_FILE
    with contextlib.suppress(OSError):  # no server of this machine's, or one that is just stopped
        file = path.open("ab")
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        _held.append(file)


def down() -> bool:
    """Stop the server that `up` started, and whatever is left of it. False when none was alive."""
    if not paths.run_dir().is_dir():  # nothing was ever started, and nothing is written here
        return False
    with lock():
        info = read_state()
        if info is None:
            return False
        was_alive = is_alive(info)
        _stop(info)
        return was_alive


def answers(info: ServerInfo) -> bool:
    """False for one that dies just now: a killed process of many threads is alive for some
    milliseconds more, and resets connections. Raises ServerError for one that lives on."""
    try:
        _check_answers(info)
    except ServerError:
        deadline_s = time.monotonic() + DYING_S
        while is_alive(info) and is_running(info):  # its supervisor may outlive it
            if time.monotonic() > deadline_s:
                raise
            time.sleep(DYING_S / 50)
        return False
    return True


def _check_answers(info: ServerInfo) -> None:
    """Raises ServerError unless the live server is ready, and is itself."""
    try:
        name = name_of(info)
        is_up = name == info.id and says_ready(info)
    except NoAnswer as error:
        raise ServerError(
            f"the server (process {info.server_pid}) does not answer at {info.grpc_url} "
            f"({error}); log: {info.log}. Try again in some seconds: a dead server is started "
            "again. Else `compllm down`, then `compllm up`"
        ) from error
    if name != info.id:
        raise ServerError(
            f"another program answers at {info.grpc_url}: `compllm down`, then `compllm up`"
        )
    if not is_up:
        raise ServerError(
            f"the server (process {info.server_pid}) is not ready"
            f"{reason_in(Path(info.log), since_restart=True)}; "
            f"its log is {info.log}. `compllm down`, then `compllm up`"
        )


@contextlib.contextmanager
def running(
    engine_dir: str | Path | None = None,
    *,
    options: Mapping[str, Any] | None = None,
    has_face: bool = False,
    has_http: bool = False,
    is_shared: bool = True,
    timeout_s: float = 60.0,
) -> Iterator[ServerInfo]:
    """A server of this engine for the length of the block.

    The user's own (from `up`) where it fits and `is_shared`; else a new one on free ports, which
    ends with the block, and with this process however that ends. has_http: HTTP is open too.
    """
    engine = _checked_engine(engine_dir)
    ports = Ports(http=0 if has_http else None)
    if is_shared and (found := _fitting(engine, ports, options, has_face)) is not None:
        yield found
        return
    require_writable(paths.run_dir())
    paths.run_dir().mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="owned-", dir=paths.run_dir()))
    try:
        info = triton_process.start(
            engine, directory, ports, options=options, has_face=has_face, timeout_s=timeout_s
        )
        try:
            yield info
        finally:
            triton_process.stop(info)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _fitting(
    engine: Path, ports: Ports, options: Mapping[str, Any] | None, has_face: bool
) -> ServerInfo | None:
    with contextlib.suppress(ServerError, ConfigError):
        info = status()
        if info is not None and _is_current(info, engine):
            _check_same(info, engine, ports, options, has_face)
            return info
    return None


def _check_same(
    info: ServerInfo,
    engine: Path,
    ports: Ports,
    options: Mapping[str, Any] | None,
    has_face: bool,
    config: Path | None = None,
) -> None:
    """Raises ServerError unless the live server is the one asked for: a client may be using it."""
    differs = None
    if Path(info.engine_dir) != engine:
        differs = f"the engine {info.engine_dir}"
    elif options is not None and json.loads(info.options) != json.loads(json.dumps(dict(options))):
        differs = f"the options {info.options}"
    elif has_face and not info.has_face:
        differs = f"no model {FACE_MODEL}"
    elif config is not None and info.config_file != str(config):
        differs = f"the settings {info.config_file}" if info.config_file else "its default settings"
    actual = info.ports.names()
    for name, wanted in ports.names().items():
        if name == "HTTP" and wanted is not None and not actual[name]:
            differs = "HTTP closed"
        elif wanted and wanted != actual[name]:
            differs = f"the {name} port {actual[name]}"
    if differs is not None:
        raise ServerError(
            f"a server (process {info.server_pid}) is already running with {differs}: "
            "`compllm down` stops it"
        )


def _is_current(info: ServerInfo, engine: Path) -> bool:
    is_same = Path(info.engine_dir) == engine
    if not is_same or info.engine_hash != triton_process.engine_hash(engine):
        return False
    config = Path(info.config_file) if info.config_file else None
    return not info.has_face or info.settings_hash == settings_hash(config)


def settings_hash(config: Path | None) -> str:
    """Over what `comp_llm` reads when it starts: the settings and the catalogue they name, with the
    adapters' ids in it. Raises ConfigError."""
    settings = load_config(config)
    settings = replace(settings, server=replace(settings.server, url=""))  # its own, of any port
    catalogue = load_catalogue(Path(settings.catalogue) if settings.catalogue else None)
    return hashlib.sha256(repr((settings, catalogue)).encode()).hexdigest()


def _checked_engine(engine_dir: str | Path | None) -> Path:
    engine = Path(engine_dir or paths.engine_dir()).expanduser().resolve()
    if not (engine / "manifest.json").is_file():
        what = "holds no manifest.json" if engine.is_dir() else "does not exist"
        raise ServerError(
            f"no engine: {engine} {what}. `compllm up` builds the default one, build_openvino.py "
            "any other"
        )
    return engine


def _stop(info: ServerInfo) -> None:
    triton_process.stop(info)
    forget_state()


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """One start or stop at a time, over all processes of the user. Raises ConfigError where nothing
    can be written there."""
    require_writable(paths.run_dir())
    paths.run_dir().mkdir(parents=True, exist_ok=True)
    with (paths.run_dir() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
