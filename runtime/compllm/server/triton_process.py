"""The processes of one server: spawned under a supervisor, watched, cleared away.

`triton_server.py` decides which server there is to be; this carries it out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from compllm import served
from compllm.config import load_config
from compllm.errors import ServerError
from compllm.niceness import NICENESS, session_gives_way
from compllm.server import server_log, supervisor, triton_files
from compllm.server.health import is_ready
from compllm.server.server_log import read_log, reason_in
from compllm.server.triton_state import ADMIN_HEADER, HOST, Ports, ServerInfo, status_header
from compllm.storage import require_space

_POLL_S = 0.05  # tritonserver sends no signal when it is ready: it must be asked
STARTING_S = 30.0  # of a server's life: until then one that is not ready is still starting
_FOR_ADMINS = "shared-memory,model-repository,logging,trace"  # no client of the product needs them
_STOP_S = 23.0  # the supervisor's own limits and some more
_START_ATTEMPTS = 3  # a port that was free may be taken before the server binds it


def start(
    engine: Path,
    directory: Path,
    ports: Ports,
    *,
    options: Mapping[str, Any] | None = None,
    has_face: bool = False,
    config: Path | None = None,
    timeout_s: float,
) -> ServerInfo:
    """Start a server of this engine with its files in `directory`, and wait until it is ready.

    It ends with this process unless it is released. options, has_face, config: see
    `triton_server.up`.
    Raises ServerError with the reason out of the log, and OSError for the disk; nothing is left
    running or half-written then.
    """
    check_free(ports)
    try:
        return _start(engine, directory, ports, options, has_face, config, timeout_s)
    except BaseException:
        with contextlib.suppress(OSError):
            clear(directory)
        raise


def _start(
    engine: Path,
    directory: Path,
    ports: Ports,
    options: Mapping[str, Any] | None,
    has_face: bool,
    config: Path | None,
    timeout_s: float,
) -> ServerInfo:
    deadline = time.monotonic() + timeout_s
    binary = triton_files.find_tritonserver()
    clear(directory)
    backends = triton_files.make_backends(binary, directory / "backends")
    values = {
        "engine_dir": str(engine),
        "tokenizer_dir": str(engine),
        "executor_options": json.dumps(dict(options or {}), sort_keys=True),
        "config_file": str(config or ""),
    }
    settings = ""
    if has_face:
        settings, values["catalogue"] = face_settings(config)
    names = [triton_files.CORE_MODEL, *([triton_files.FACE_MODEL] if has_face else [])]
    for attempt in range(1, _START_ATTEMPTS + 1):
        bound = free_ports(ports)
        values["server_url"] = f"{HOST}:{bound.grpc}"  # where comp_llm finds the core model
        models = triton_files.write_repository(directory / "models", values, names)
        log = server_log.rotate(directory)
        server_log.write_header(log, engine, values["config_file"], bound.names())
        info = spawn(binary, models, backends, bound)
        info = replace(
            info,
            engine_dir=str(engine),
            engine_hash=engine_hash(engine),
            options=values["executor_options"],
            has_face=has_face,
            config_file=values["config_file"],
            settings=settings,
        )
        try:
            session_gives_way(info.pid, (options or {}).get("niceness", NICENESS))
            wait_ready(info, deadline, timeout_s)
        except BaseException as error:
            stop(info)
            if not isinstance(error, _PortTaken) or attempt == _START_ATTEMPTS:
                raise
        else:
            return info
    raise AssertionError("unreachable")


def face_settings(config: Path | None) -> tuple[str, str]:
    """The settings for the state file, and the summary of the catalogue that they name, for the
    model `comp_llm`. Raises ConfigError."""
    settings = load_config(config)
    catalogue = served.catalogue_of(settings)
    return served.settings_of(settings, catalogue), served.summary_of(catalogue)


def clear(directory: Path) -> None:
    """An empty directory but for the logs of earlier starts."""
    directory.mkdir(parents=True, exist_ok=True)
    supervisor.clear_temporary(directory)
    for each in directory.iterdir():
        if each.is_dir() and not each.is_symlink():
            shutil.rmtree(each, ignore_errors=True)
        elif not server_log.is_log(each):
            each.unlink()


def release(info: ServerInfo) -> None:
    """Let a server of this process outlive it."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(info.pid, signal.SIGUSR1)


class _PortTaken(ServerError):
    """Another process bound a port between our check and the server's."""


def spawn(binary: Path, models: Path, backends: Path, ports: BoundPorts) -> ServerInfo:
    """A server of this repository, under its supervisor and not yet ready: `wait_ready` follows.

    Its log and state lie in the repository's parent directory. Raises ServerError.
    """
    directory = models.parent
    log = directory / supervisor.LOG_FILE
    name = f"compllm-{os.getpid()}-{time.monotonic_ns()}"
    # The name is public. A client that knew the prefix could register the server's own memory.
    prefix, key = f"compllm-{secrets.token_hex(16)}-", secrets.token_hex(16)
    program = triton_files.without_status_header(binary, directory / "bin", status_header(key))
    command = [
        str(program),
        f"--id={name}",
        f"--model-repository={models}",
        # All models at the start; reload.py loads one again.
        "--model-control-mode=explicit",
        "--load-model=*",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        f"--grpc-restricted-protocol={_FOR_ADMINS}:{ADMIN_HEADER}={key}",
        "--disable-auto-complete-config",
        *(f"--{each}-address={HOST}" for each in ("grpc", "metrics")),
        f"--grpc-port={ports.grpc}",
        *_http_options(ports.http, key),
        f"--metrics-port={ports.metrics}",
        "--allow-gpu-metrics=false",
        "--pinned-memory-pool-byte-size=0",  # of CUDA: without it no start warns that there is none
        "--exit-timeout-secs=5",
    ]
    script = str(Path(supervisor.__file__).resolve())
    # -S -E: the supervisor needs the standard library alone, and starts the quicker.
    owner = str(os.getpid())
    argv = [sys.executable, "-S", "-E", script, owner, prefix, str(directory), *command]
    pid, answer = _spawn_detached(argv, triton_files.environment(binary), log)
    if not answer:
        _reap(pid)
        require_space(directory)
        raise ServerError(
            f"the server's supervisor did not start{reason_in(log)}; its log is {log}"
        )
    return ServerInfo(
        pid=pid,
        started=start_ticks(pid),
        server_pid=int(answer),
        id=name,
        grpc_port=ports.grpc,
        http_port=ports.http,
        metrics_port=ports.metrics,
        log=str(log),
        shm_prefix=prefix,
        admin_key=key,
    )


def _http_options(port: int, key: str) -> tuple[str, ...]:
    """Closed unless a port was asked for: of Triton's front ends, this one's parser is what hostile
    requests crash."""
    if not port:
        return ("--allow-http=false",)
    return (
        f"--http-address={HOST}",
        f"--http-port={port}",
        f"--http-restricted-api={_FOR_ADMINS}:{ADMIN_HEADER}={key}",
    )


def _spawn_detached(argv: list[str], env: Mapping[str, str], log: Path) -> tuple[int, str]:
    """Process id, and the first line of output. posix_spawn and not Popen: the process outlives any
    object that would warn about it."""
    read, write = os.pipe()
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        pid = os.posix_spawn(
            argv[0],
            argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, write, 1),
                (os.POSIX_SPAWN_DUP2, log_fd, 2),
            ],
            setsid=True,  # a Ctrl-C at the terminal is for us alone
        )
    finally:
        os.close(write)
        os.close(log_fd)
    with os.fdopen(read) as answer:
        return pid, answer.readline().strip()


def wait_ready(info: ServerInfo, deadline: float, timeout_s: float) -> None:
    """Return when the server is ready. Raises ServerError with the reason out of its log where it
    dies, or is not ready at `deadline`, which was `timeout_s` from the start."""
    log = Path(info.log)
    while not is_ready(info):
        if not is_alive(info):
            kind = _PortTaken if "address already in use" in read_log(log).lower() else ServerError
            raise kind(f"the server did not start{reason_in(log)}")
        if time.monotonic() > deadline:
            raise ServerError(
                f"the server was not ready within {timeout_s:g} s{reason_in(log)}; give it longer"
            )
        time.sleep(_POLL_S)


class BoundPorts(NamedTuple):
    """Ports that the server is started to listen at; HTTP is closed at 0."""

    grpc: int
    http: int
    metrics: int

    def names(self) -> dict[str, int]:
        open = {"HTTP": self.http} if self.http else {}
        return {"gRPC": self.grpc, **open, "metrics": self.metrics}


def free_ports(ports: Ports) -> BoundPorts:
    """The ports asked for, and free ones, all different, in the place of None; of HTTP: of 0."""
    is_closed = ports.http is None
    with contextlib.ExitStack() as held:
        chosen = []
        for port in (ports.grpc, 0 if is_closed else ports.http or None, ports.metrics):
            if port is None:
                probe = held.enter_context(socket.socket())
                probe.bind((HOST, 0))
                port = probe.getsockname()[1]
            chosen.append(port)
        return BoundPorts(*chosen)


def check_free(ports: Ports) -> None:
    """Raises ServerError where a port that is named is taken."""
    for name, port in ports.names().items():
        if port:
            _check_free(name, port)


def _check_free(name: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "ports end at 65535"
            raise ServerError(
                f"{name} port {port} cannot be used ({reason}): name another, or 0 for a free one"
            ) from error


def engine_hash(engine: Path) -> str:
    """Tells apart what was built into one directory at different times."""
    return hashlib.sha256((engine / "manifest.json").read_bytes()).hexdigest()


# Watching


def is_alive(info: ServerInfo) -> bool:
    """Whether the server lives, or its supervisor clears up after it or starts it again."""
    return _is_supervised(info)


def is_running(info: ServerInfo) -> bool:
    """Whether the server's own process lives."""
    return _is_running(info.server_pid)


def is_starting(info: ServerInfo) -> bool:
    """Whether the supervisor starts the server, for the first time or again."""
    if not _is_supervised(info):
        return False
    if not _is_running(info.server_pid):
        return True
    since_s = start_ticks(info.server_pid) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - since_s < STARTING_S


def _is_supervised(info: ServerInfo) -> bool:
    _reap(info.pid)
    if not _is_running(info.pid):
        return False
    # The number may belong to another process by now. Ticks: a clock that is set changes no times.
    return start_ticks(info.pid) == info.started


def _is_running(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def start_ticks(pid: int) -> int:
    """When the process started, in clock ticks since boot (proc(5), field 22); 0: it is over."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def _reap(pid: int) -> None:
    """Where the process is our own child, its end is taken notice of."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


# Stopping


def stop(info: ServerInfo) -> None:
    """Ask the supervisor to end, insist, and clear away what a killed supervisor left."""
    if _is_supervised(info):
        with contextlib.suppress(ProcessLookupError):
            os.kill(info.pid, signal.SIGTERM)
        deadline = time.monotonic() + _STOP_S
        while _is_supervised(info) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if _is_supervised(info):
            with contextlib.suppress(ProcessLookupError):
                os.kill(info.pid, signal.SIGKILL)
    _reap(info.pid)
    for pid in _group(info):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for leftover in Path("/dev/shm").glob(f"{info.shm_prefix or info.id}*"):
        leftover.unlink(missing_ok=True)
    supervisor.clear_temporary(Path(info.log).parent)


def _group(info: ServerInfo) -> list[int]:
    """What lives of the server's process group. Only what was started out of its directory counts:
    the number of a group may have passed to another process."""
    directory = str(Path(info.log).parent)
    members = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):
            is_member = os.getpgid(process.pid) == info.server_pid
            if is_member and any(directory in each for each in process.cmdline()):
                members.append(process.pid)
    return members
