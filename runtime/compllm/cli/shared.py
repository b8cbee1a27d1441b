"""What several commands take and find: choices that mean the same everywhere, and the server asked.

Apart from `app.py`, which the command modules cannot import.
"""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

from compllm.errors import ServerError

if TYPE_CHECKING:
    from compllm.config import Config


class Compose(StrEnum):
    always = "always"
    auto = "auto"
    never = "never"


class Gate(StrEnum):
    off = "off"
    on = "on"
    auto = "auto"


class Overhead(StrEnum):
    plan_compose = "plan+compose"
    none = "none"


class AdmissionOrder(StrEnum):
    oldest_query_first = "oldest_query_first"
    fifo = "fifo"
    deepest_first = "deepest_first"
    least_remaining_work = "least_remaining_work"


def with_server(settings: Config) -> tuple[Config, str | None]:
    """The settings with a server's address, the given one or that of the one running here, and
    where its metrics are if that is known. Raises ServerError where there is none."""
    if settings.server.url:
        return settings, None
    try:
        from compllm.server import triton_server
    except ImportError as error:
        raise ServerError(
            f"no server is named: give --url HOST:PORT (the embedded one is not here: {error})"
        ) from error
    server = triton_server.status()
    if server is None:
        raise ServerError(
            "no server is running: start one with `compllm up`, or name one with --url HOST:PORT"
        )
    found = replace(settings, server=replace(settings.server, url=server.grpc_url))
    return found, server.metrics_url
