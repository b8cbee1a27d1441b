"""What identifies a server, the file that keeps it, and what it reports over HTTP and in its log.

`triton_process.py` starts and stops it. Nothing here changes a server.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from compllm import paths
from compllm.errors import ServerError
from compllm.server.server_log import reason_in
from compllm.server.supervisor import PID_FILE

HOST = "127.0.0.1"
ADMIN_HEADER = "compllm-admin"
_STATE = "server.json"
_HEALTH_S = 5.0  # above a pause of the machine: a server that hangs this long is reported


@dataclass(frozen=True, slots=True)
class Ports:
    """Which to listen at; None takes a free one."""

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
    http_port: int
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
        return f"http://{HOST}:{self.http_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self.metrics_port}/metrics"

    @property
    def ports(self) -> Ports:
        return Ports(self.grpc_port, self.http_port, self.metrics_port)


def models(info: ServerInfo) -> list[dict[str, Any]]:
    """Name, readiness, state and its reason of each model there is. Raises ServerError."""
    try:
        headers = {ADMIN_HEADER: info.admin_key}
        _, index = ask(info, "/v2/repository/index", "POST", headers)
        return [
            {
                "name": each["name"],
                "is_ready": ask(info, f"/v2/models/{each['name']}/ready")[0] == 200,
                "state": each.get("state", "UNAVAILABLE").lower(),
                **({"reason": each["reason"]} if each.get("reason") else {}),
            }
            for each in json.loads(index)
        ]
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        raise ServerError(f"{info.http_url} does not tell its models: {error}") from error


def ask(
    info: ServerInfo,
    path: str,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    timeout_s: float = _HEALTH_S,
) -> tuple[int, bytes]:
    """Status and content of an HTTP response. Raises OSError, http.client.HTTPException."""
    connection = http.client.HTTPConnection(HOST, info.http_port, timeout=timeout_s)
    try:
        connection.request(method, path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def is_ready(info: ServerInfo) -> bool:
    """Ready, and the very process that was started: its name is in the answer."""
    try:
        code, _ = ask(info, "/v2/health/ready")
        return code == 200 and _name(info) == info.id
    except (OSError, http.client.HTTPException):
        return False


def is_foreign(info: ServerInfo) -> bool:
    """Whether another program answers at the server's port."""
    try:
        return _name(info) != info.id
    except (OSError, http.client.HTTPException):
        return False


def _name(info: ServerInfo) -> str | None:
    try:
        return str(json.loads(ask(info, "/v2")[1])["name"])
    except (ValueError, KeyError, TypeError):
        return None


def check_answers(info: ServerInfo) -> None:
    """Raises ServerError unless the live server is ready, and is itself."""
    try:
        name = _name(info)
        status_code = ask(info, "/v2/health/ready")[0]
    except (OSError, http.client.HTTPException) as error:
        raise ServerError(
            f"the server (process {info.server_pid}) does not answer at {info.http_url} "
            f"({error}); log: {info.log}. `compllm down`, then `compllm up`"
        ) from error
    if name != info.id:
        raise ServerError(
            f"another program answers at {info.http_url}: `compllm down`, then `compllm up`"
        )
    if status_code != 200:
        raise ServerError(
            f"the server (process {info.server_pid}) is not ready{reason_in(Path(info.log))}; "
            f"its log is {info.log}. `compllm down`, then `compllm up`"
        )


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
    partial.touch(0o600)  # it holds the key
    partial.write_text(json.dumps(asdict(info), indent=2), encoding="utf-8")
    partial.replace(path)


def forget_state() -> None:
    """There is no server any more."""
    (paths.run_dir() / _STATE).unlink(missing_ok=True)
