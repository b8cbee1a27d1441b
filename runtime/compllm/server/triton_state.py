"""What identifies a server, and the file that keeps it.

`triton_process.py` starts and stops it, `health.py` asks it. Nothing here changes a server.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from compllm import paths
from compllm.errors import ServerError
from compllm.server.supervisor import PID_FILE

HOST = "127.0.0.1"
ADMIN_HEADER = "compllm-admin"
STATUS_HEADER = "triton_grpc_error"  # of a gRPC stream that is to end with an error's status
_STATE = "server.json"


def status_header(admin_key: str) -> str:
    """What the owner's server takes in place of STATUS_HEADER: a header of as many characters."""
    return admin_key[: len(STATUS_HEADER)]


@dataclass(frozen=True, slots=True)
class Ports:
    """Which to listen at; None takes a free one. HTTP stays closed at None; 0 takes a free one."""

    grpc: int | None = None
    http: int | None = None
    metrics: int | None = None

    def names(self) -> dict[str, int | None]:
        return {"gRPC": self.grpc, "HTTP": self.http, "metrics": self.metrics}


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """A server that was ready when this was made."""

    pid: int  # of its supervisor: ends the server when terminated
    started: int  # of that process, in clock ticks since boot: a later owner of the number differs
    server_pid: int  # of tritonserver, and its process group; another one after a restart
    id: str  # what the server answers to the question for its name
    grpc_port: int
    http_port: int  # 0: HTTP is closed
    metrics_port: int
    log: str
    engine_dir: str = ""
    engine_hash: str = ""  # of the engine's manifest at the start
    options: str = "{}"  # of the executor, as JSON
    has_face: bool = False  # serves `comp_llm` too
    config_file: str = ""  # of that model's settings; empty: none was named
    settings_hash: str = ""  # of what that model read at the start
    settings: str = ""  # all of its settings, as JSON, for clients here; empty: no such model
    shm_prefix: str = ""  # of its shared memory; no client learns it
    admin_key: str = ""  # what a request for models, shared memory, traces or the log must carry

    @property
    def grpc_url(self) -> str:
        return f"{HOST}:{self.grpc_port}"

    @property
    def http_url(self) -> str:
        """Empty where HTTP is closed."""
        return f"http://{HOST}:{self.http_port}" if self.http_port else ""

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self.metrics_port}/metrics"

    @property
    def ports(self) -> Ports:
        return Ports(self.grpc_port, self.http_port, self.metrics_port)


# The state file


def read_state() -> ServerInfo | None:
    """The server that `up` started last, alive or not; None where there is none. Raises
    ServerError for a file that cannot be read."""
    path = paths.run_dir() / _STATE
    try:
        info = ServerInfo(**json.loads(path.read_text(encoding="utf-8")))
        return replace(info, server_pid=_latest_pid(info))
    except (FileNotFoundError, NotADirectoryError):  # the latter: the home is a file
        return None
    except (ValueError, TypeError, OSError) as error:
        raise ServerError(
            f"{path} is not readable ({error}): stop the server by hand and remove it"
        ) from error


def _latest_pid(info: ServerInfo) -> int:
    """The supervisor starts a server that died again, and keeps its process id."""
    try:
        return int((Path(info.log).parent / PID_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return info.server_pid


def write_state(info: ServerInfo) -> None:
    """Keep it for every process of the user."""
    path = paths.run_dir() / _STATE
    partial = path.with_suffix(".partial")
    try:
        partial.touch(0o600)  # it holds the key
        partial.write_text(json.dumps(asdict(info), indent=2), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def forget_state() -> None:
    """There is no server any more."""
    (paths.run_dir() / _STATE).unlink(missing_ok=True)
